"""The verb that compares studies."""

from pathlib import Path
from typing import Annotated

import typer

from rankscope.cli.application import AsJson, app
from rankscope.cli.terminal import print_json, print_message, print_result


@app.command("compare")
def compare_command(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR DIR...", help="Folders of finished studies.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Also write an HTML page.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two or more studies.

    Shows what they share, the arms that both have on the same items, and their answers. Every
    further study is compared with the first one.

    Example: rankscope compare studies/pocket studies/mine --out compared.html
    """
    from rankscope.cli.render.comparison import comparison_tables
    from rankscope.tools.compare import check_inside, compare

    if out is not None:
        check_inside(out, folders)
    comparison = compare(folders)
    if out is not None:
        from rankscope.provenance import provenance
        from rankscope.report.comparison_page import write_comparison_page

        write_comparison_page(comparison, provenance(), out)
        print_message(f"written to {out}")
    if as_json:
        print_json(comparison.model_dump(mode="json"))
    else:
        print_result(comparison_tables(comparison))
