"""What to leave out of a study that takes too long, and what is lost with it."""

from collections.abc import Mapping, Sequence

from rankscope.config.study import StudyConfig
from rankscope.records import Record, TrialSpec
from rankscope.run.costs import ItemTokens, StageSeconds
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
    items: Mapping[tuple[str, str], Sequence[ItemTokens]],
) -> tuple[Saving, ...]:
    """The three largest savings, largest first.

    Args:
        costs: of every trial by its id.
        stages: of the whole study, the base included.
        items: by task and split.
    """

    def of(chosen: Sequence[TrialSpec]) -> float:
        return sum(costs[trial.trial_id].total for trial in chosen)

    found = [
        Saving(
            change="analyze.spectra.enabled=false",
            seconds=stages.spectra,
            loses="size and direction of the updates",
        ),
        Saving(
            change="analyze.heads.enabled=false",
            seconds=stages.heads,
            loses="which attention heads change",
        ),
        Saving(
            change=f"evaluate.max_items={SUGGESTED_ITEMS}",
            seconds=stages.scoring * (1 - share_of_first(items)),
            loses="precision: intervals grow with the root of the items left out",
        ),
    ]
    seeds = len(config.seeds)
    if seeds > 1:
        kept = config.seeds[0]
        found.append(
            Saving(
                change=f"seeds=[{kept}]",
                seconds=of([trial for trial in trials if trial.seed != kept]),
                loses="how much results vary from run to run",
            )
        )
    of_one_arm = trials_of_one_arm(trials, config.arms, config.train)
    for index, (arm, own) in enumerate(zip(config.arms, of_one_arm, strict=True)):
        if len(arm.lr) > 1:
            kept_rate = sorted(arm.lr)[len(arm.lr) // 2]
            found.append(
                Saving(
                    change=f"arms.{index}.lr={kept_rate:g}",
                    seconds=of([trial for trial in own if trial.lr != kept_rate]),
                    loses="whether each rank has its best learning rate",
                )
            )
        if len(config.arms) > 1 and all(trial.is_full for trial in own):
            found.append(
                Saving(
                    change=f"leave out arms.{index} (full fine-tuning)",
                    seconds=of(own),
                    loses="the comparison with full fine-tuning",
                )
            )
    if config.train.epochs > 1 and config.train.max_steps is None and config.train.tokens is None:
        found.append(
            Saving(
                change="train.epochs=1",
                seconds=stages.training * (1 - 1 / config.train.epochs),
                loses="what further passes over the rows add",
            )
        )
    worth = [saving for saving in found if saving.seconds > LEAST_SHARE * stages.total]
    return tuple(sorted(worth, key=lambda saving: -saving.seconds)[:NUM_SAVINGS])


def share_of_first(items: Mapping[tuple[str, str], Sequence[ItemTokens]]) -> float:
    """Tokens of the first items of every split over those of all."""
    few = sum(i.total for of_split in items.values() for i in of_split[:SUGGESTED_ITEMS])
    return few / max(1, sum(i.total for split in items.values() for i in split))
