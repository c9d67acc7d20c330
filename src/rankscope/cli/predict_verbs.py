"""The verb that says what rank to expect before training, and how often that was right."""

from pathlib import Path
from typing import Annotated

import typer

from rankscope.cli.application import AsJson, Overrides, app
from rankscope.cli.terminal import print_json, say, show
from rankscope.errors import UserError

HYPOTHESES = (
    "These are hypotheses: no predictor of the best rank is established. "
    "'rankscope predict --backtest DIR...' says how often each was right on your own studies."
)


@app.command()
def predict(
    places: Annotated[
        list[Path],
        typer.Argument(metavar="FILE.yaml | DIR...", help="A study file; or finished studies."),
    ],
    backtest: Annotated[
        bool, typer.Option("--backtest", help="Compare with finished studies in DIR...")
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Say what rank the data and the base suggest.

    Before training, as hypotheses; with --backtest, how often each was right on finished studies.

    Example: rankscope predict study.yaml --set data_dir=../data
    """
    from rankscope.cli.render.prediction import backtest_screen, prediction_screen
    from rankscope.config.loader import load_study_file
    from rankscope.predict.study import backtest as run_backtest
    from rankscope.predict.study import predict_study

    if backtest:
        if overrides:
            raise UserError("predict --backtest: finished studies are taken as they are; no --set")
        made = run_backtest(places)
        if as_json:
            print_json(made.model_dump(mode="json"))
        else:
            show(backtest_screen(made))
            say("Right: named the smallest rank within the study's margin of the best.")
        return
    if len(places) != 1:
        raise UserError(f"predict: found {len(places)} study files, expected one, or --backtest")
    found = predict_study(load_study_file(places[0], overrides or []))
    if as_json:
        print_json({"note": HYPOTHESES, "tasks": [t.model_dump(mode="json") for t in found]})
    else:
        show(prediction_screen(found))
        say(HYPOTHESES)
