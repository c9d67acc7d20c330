"""The verb that predicts the best rank before training."""

from pathlib import Path
from typing import Annotated

import typer

from rankscope.cli.application import AsJson, Overrides, app
from rankscope.cli.terminal import print_json, print_line, print_result
from rankscope.errors import UserError

HYPOTHESES = (
    "These are hypotheses: no predictor of the best rank is established. "
    "'rankscope predict --backtest DIR...' shows how often each was right on your own studies."
)


@app.command("predict")
def predict_command(
    places: Annotated[
        list[Path],
        typer.Argument(metavar="FILE.yaml | DIR...", help="A study file, or folders of studies."),
    ],
    backtest: Annotated[
        bool, typer.Option("--backtest", help="Compare with finished studies in DIR...")
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Predict the best rank before training.

    From the data and the base, as hypotheses. --backtest shows how often each was right on
    finished studies.

    Example: rankscope predict study.yaml --set data_dir=../data
    """
    from rankscope.cli.render.prediction import backtest_tables, prediction_tables
    from rankscope.config.loader import load_study_file
    from rankscope.predict import study as prediction

    if backtest:
        if overrides:
            raise UserError(
                "predict --backtest: --set has no effect on finished studies; leave it out"
            )
        result = prediction.backtest(places)
        if as_json:
            print_json(result.model_dump(mode="json"))
        else:
            print_result(backtest_tables(result))
            print_line("Right: it named the smallest rank within the study's margin of the best.")
        return
    if len(places) != 1:
        raise UserError(f"predict: found {len(places)} study files, expected one, or --backtest")
    tasks = prediction.predict_study(load_study_file(places[0], overrides or []))
    if as_json:
        print_json({"note": HYPOTHESES, "tasks": [t.model_dump(mode="json") for t in tasks]})
    else:
        print_result(prediction_tables(tasks))
        print_line(HYPOTHESES)
