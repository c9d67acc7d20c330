"""The verb ``predict``."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from rankscope.cli.application import Overrides, check_study, verb
from rankscope.cli.terminal import Reply, err_console, print_result
from rankscope.errors import UserError
from rankscope.progress import ConsoleReporter


@verb("predict", "Reading {places} ...")
def _predict_command(
    places: Annotated[
        list[Path],
        Argument(metavar="FILE.yaml | DIR...", help="A study file, or folders of studies."),
    ],
    backtest: Annotated[bool, Option("--backtest", help="Compare with finished studies.")] = False,
    screen: Annotated[
        Path | None,
        Option(
            metavar="DIR",
            help="Train the grid on a tenth of the rows into DIR (with --backtest, DIR/<study>).",
        ),
    ] = None,
    overrides: Overrides = None,
) -> Reply:
    """Predict the best rank: hypotheses, and their past record.

    From the rows and the base alone, and with --screen from a small study. --backtest compares
    every predictor with finished studies.

    Example: rankscope predict study.yaml --screen screens/mine
    """
    from rankscope.config.loader import load_study_file

    if backtest:
        if overrides:
            raise UserError("predict --backtest", "--set", do="leave it out: studies are finished")
        for folder in places:
            check_study(folder)
        from rankscope.cli.render.prediction import backtest_tables
        from rankscope.predict.backtest import backtest as run_backtest
        from rankscope.predict.backtest import score_predictors

        with ConsoleReporter(err_console) as reporter:
            result = run_backtest(places, screen, reporter)
        scores = score_predictors(result.tasks)
        return Reply(
            {"scores": scores, "backtest": result},
            lambda: print_result(backtest_tables(result, scores)),
        )
    if len(places) != 1:
        raise UserError("predict", f"{len(places)} study files", "one, or --backtest")
    config = load_study_file(places[0], overrides or [])
    from rankscope.cli.render.prediction import prediction_tables
    from rankscope.predict.backtest import past_record, score_predictors
    from rankscope.predict.features import predict_study

    with ConsoleReporter(err_console) as reporter:
        tasks = predict_study(config, screen, reporter)
    record = past_record()
    past = score_predictors(record)
    return Reply(
        {"tasks": tasks, "past_record": past},
        lambda: print_result(prediction_tables(tasks, record, past)),
    )
