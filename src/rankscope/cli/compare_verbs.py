"""The verb that lays studies side by side."""

from pathlib import Path
from typing import Annotated

import typer

from rankscope.cli.application import AsJson, app
from rankscope.cli.terminal import print_json, show, tell


@app.command()
def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR DIR...", help="Folders of finished studies.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write it as an HTML page too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Lay two or more studies side by side.

    What they share, the arms that both have on the same items, and their answers; each of the
    others against the first.

    Example: rankscope compare studies/pocket studies/mine --out compared.html
    """
    from rankscope.cli.render.comparison import comparison_screen
    from rankscope.tools.compare import check_inside
    from rankscope.tools.compare import compare as compare_studies

    if out is not None:
        check_inside(out, folders)
    found = compare_studies(folders)
    if out is not None:
        from rankscope.provenance import provenance
        from rankscope.report.comparison_page import write_comparison_page

        write_comparison_page(found, provenance(), out)
        tell(f"written to {out}")
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        show(comparison_screen(found))
