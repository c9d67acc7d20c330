"""The descent that fixes a study before weights are loaded: its model, data, trials and groups."""

from rankscope.advise.checks import notes_beforehand
from rankscope.advise.search import first_designs
from rankscope.config.study import StudyConfig
from rankscope.data.study_data import prepare_data
from rankscope.evaluate.evaluator import scored_items
from rankscope.models.study_base import check_machine, resolve_base
from rankscope.progress import ProgressReporter
from rankscope.run.machines import Machine, this_machine
from rankscope.run.prepared import PreparedStudy, tokens_note
from rankscope.run.trials import duplicate_grid_notes, study_trials


def prepare(
    config: StudyConfig,
    reporter: ProgressReporter | None = None,
    num_processes: int = 1,
    machine: Machine | None = None,
    *,
    is_plan: bool = False,
) -> PreparedStudy:
    """Fetch the model, encode the data, and check everything.

    A run hashes the weights; nothing loads them. Raises UserError: the study cannot run.

    ``auto`` settings are resolved, so that trial ids name what was done.

    Args:
        num_processes: groups that train at a time and share the free memory.
        machine: machine of a plan, in place of this one.
        is_plan: the base's configuration and tokenizer are enough. Some rows stand for others of
            their length (``data/study_data.py``), and trial ids differ from those of a run.
    """
    reporter, place = reporter or ProgressReporter(), machine or this_machine(config)
    reporter.stage("preparing", 3)
    config, base = resolve_base(place.resolved(config), weights=not is_plan)
    reporter.advance(1, "rows")
    data = prepare_data(config, base.tokenizer, whole=not is_plan)
    model = config.model.model_copy(update={"prompt_format": data.encoder.prompt_format})
    config = config.model_copy(update={"model": model})
    reporter.advance(2, "trials and groups")
    tasks, items, length_notes = scored_items(config, base, data)
    trials, beyond = study_trials(config, base, data, tasks, whole=not is_plan)
    prompts = [trial for trial in trials if trial.prompt]
    prompted = {t.trial_id: scored_items(config, base, data.seen_by(t))[1] for t in prompts}
    grouping = place.grouping(config, base, data, num_processes)
    notes = [*base.notes, *data.encoder.notes, *data.notes, *length_notes]
    notes += notes_beforehand(config, tasks) + grouping.notes(config, trials)
    notes += [tokens_note(trial, items, prompted[trial.trial_id]) for trial in prompts]
    study = PreparedStudy(
        config=config,
        base=base,
        device=place.device,
        dtype=grouping.model.dtype,
        data=data,
        items=items,
        task_records=tasks,
        trials=trials,
        first=first_designs(trials, data.rows),
        grouping=grouping,
        beyond=beyond,
        prompted=prompted,
        notes=(*notes, *duplicate_grid_notes(config)),
    )
    study.check()
    reporter.finish()
    if machine is None:
        check_machine(config, trials, study.device, study.dtype)
    return study
