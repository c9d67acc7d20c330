"""The verb ``import``, for scores from elsewhere."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from rankscope.cli.application import verb
from rankscope.cli.study_verbs import show_results
from rankscope.cli.terminal import Reply


@verb("import", "Reading {source} ...")
def _import_command(
    source: Annotated[
        Path,
        Argument(metavar="FILE|DIR", help="A .csv or .parquet, or outputs of lm-eval or PEFT."),
    ],
    out: Annotated[Path, Option(help="A new or empty folder for the study.")],
    columns: Annotated[
        list[str] | None, Option("--map", metavar="NAME=COLUMN", help="arm=model; may be repeated.")
    ] = None,
    base: Annotated[
        str, Option(metavar="ARM", help="The untuned model, or its means: TASK=SCORE,...")
    ] = "base",
    task: Annotated[str | None, Option(help="The task that the arms were trained on.")] = None,
    retention: Annotated[str | None, Option(help="Tasks that show forgetting, or none.")] = None,
    lower: Annotated[str | None, Option(help="Metrics that are better if lower, or none.")] = None,
    metric: Annotated[
        Literal["accuracy", "log_probability"] | None, Option(help="Unit of all scores.")
    ] = None,
) -> Reply:
    """Make a study of scores from elsewhere.

    Nothing is trained. The folder can be reported, compared and verified as any study's.

    Example: rankscope import scores.csv --out studies/theirs --map arm=model --retention mmlu
    """
    from rankscope.extensions.imports.study import import_scores
    from rankscope.run.outputs import write_outputs

    options = {"task": task, "retention": retention, "lower": lower, "unit": metric}
    import_scores(source, out, columns or (), base, **options)
    records, answer = write_outputs(out)
    return Reply(answer, lambda: show_results(out, records, answer, with_reasons=True))
