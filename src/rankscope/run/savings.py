"""What to leave out of a study that takes too long, and what is lost with it."""

from collections.abc import Mapping, Sequence

from rankscope.analyses import enabled_analyses
from rankscope.config.study import StudyConfig
from rankscope.evaluate.scorers.scorer import ItemTokens
from rankscope.records import Record, Split, TrialSpec
from rankscope.run.costs import StageSeconds
from rankscope.run.trials import trials_of_one_arm

SUGGESTED_ITEMS = 200
"""Items per split that are suggested; an accuracy of one half is then known within 7 points."""
NUM_SAVINGS = 3
LEAST_SHARE = 0.02  # Smaller savings are not worth a line


class Saving(Record):
    change: str  # As a setting, ``analyze.spectra.enabled=false``
    seconds: float  # Saved, if nothing else is changed
    loses: str  # What the study then does not say


def largest_savings(
    config: StudyConfig,
    trials: Sequence[TrialSpec],
    costs: Mapping[str, StageSeconds],
    stages: StageSeconds,
    items: Mapping[tuple[str, Split], Sequence[ItemTokens]],
) -> tuple[Saving, ...]:
    """The three largest savings, largest first.

    Args:
        costs: of every trial by its id.
        stages: of the whole study, the base included.
        items: by task and split.
    """

    def of(chosen: Sequence[TrialSpec]) -> float:
        return sum(costs[trial.trial_id].total for trial in chosen)

    scoring = stages.scoring * (1 - _share_of_first(items))
    precision = "precision: intervals grow with the root of the items left out"
    found: list[Saving] = []

    def add(change: str, seconds: float, loses: str) -> None:
        if seconds > LEAST_SHARE * stages.total:
            found.append(Saving(change=change, seconds=seconds, loses=loses))

    for analysis in enabled_analyses(config):
        seconds = stages.analyses.get(analysis.name, 0.0)
        add(f"analyze.{analysis.name}.enabled=false", seconds, analysis.loses)
    add(f"evaluate.max_items={SUGGESTED_ITEMS}", scoring, precision)
    if len(config.seeds) > 1:
        kept = config.seeds[0]
        others = of([trial for trial in trials if trial.seed != kept])
        add(f"seeds=[{kept}]", others, "how much results vary from run to run")
    of_one_arm = trials_of_one_arm(trials, config.arms, config.train)
    for index, (arm, own) in enumerate(zip(config.arms, of_one_arm, strict=True)):
        if len(arm.lr) > 1:
            kept_rate = sorted(arm.lr)[len(arm.lr) // 2]
            others = of([trial for trial in own if trial.lr != kept_rate])
            loses = "whether each rank has its best learning rate"
            add(f"arms.{index}.lr={kept_rate:g}", others, loses)
        if len(config.arms) > 1 and all(trial.is_full for trial in own):
            change = f"leave out arms.{index} (full fine-tuning)"
            add(change, of(own), "the comparison with full fine-tuning")
    if config.train.epochs > 1 and config.train.max_steps is None and config.train.tokens is None:
        further = stages.training * (1 - 1 / config.train.epochs)
        add("train.epochs=1", further, "what further passes over the rows add")
    return tuple(sorted(found, key=lambda saving: -saving.seconds)[:NUM_SAVINGS])


def _share_of_first(items: Mapping[tuple[str, Split], Sequence[ItemTokens]]) -> float:
    """Tokens of the first items of every split over those of all."""
    few = sum(i.total for of_split in items.values() for i in of_split[:SUGGESTED_ITEMS])
    return few / max(1, sum(i.total for split in items.values() for i in split))
