"""One study as the figures look at it: arms by task, their trials, units and reference scores."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from rankscope.formatting import MAX_NAME, NATS, POINTS, Unit, safe_text
from rankscope.records import (
    BASE,
    FAILED,
    ArmSummary,
    EvalRecord,
    Recommendation,
    StudyRecords,
    TaskAdvice,
    TrialRecords,
    trained_parts,
)
from rankscope.report.style import DASHES, FULL, MUTED, SYMBOLS, Color, rank_colors


@dataclass(frozen=True, slots=True)
class Series:
    """Arms that differ in rank alone: one line of a figure."""

    label: str
    dash: str
    symbol: str
    arms: tuple[ArmSummary, ...]
    """By rising rank."""


def _alpha_words(arms: list[ArmSummary]) -> Callable[[ArmSummary], str]:
    """How lines over rank name alpha: as a multiple of the rank, or as the number held fixed.

    Whichever takes fewer values over the arms is what the study varied; 2r goes without saying.
    """
    pairs = [(arm.alpha, arm.rank) for arm in arms if arm.alpha is not None and arm.rank]
    ratios = {alpha / rank for alpha, rank in pairs}
    if ratios == {2.0} or not pairs:
        return lambda arm: ""
    if len(ratios) <= len({alpha for alpha, _ in pairs}):
        return lambda arm: f"alpha={(arm.alpha or 0) / (arm.rank or 1):g}r"
    return lambda arm: f"alpha={arm.alpha or 0:g}"


@dataclass(frozen=True)
class StudyView:
    """Lookups over one study and its recommendation; every method is pure."""

    study: StudyRecords
    recommendation: Recommendation

    @cached_property
    def training_tasks(self) -> tuple[str, ...]:
        """Names of the tasks trained on, in the study's order."""
        return tuple(task.name for task in self.study.tasks if task.trained_on)

    @cached_property
    def _advice(self) -> dict[str, TaskAdvice]:
        return {advice.task: advice for advice in self.recommendation.advice}

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """Every LoRA rank of the study, rising."""
        return tuple(sorted({t.spec.rank for t in self.study.trials if t.spec.rank is not None}))

    @cached_property
    def colors(self) -> dict[int, Color]:
        """Rank -> colour."""
        return rank_colors(self.ranks)

    @cached_property
    def _trials(self) -> dict[tuple[str, str], list[TrialRecords]]:
        trials: dict[tuple[str, str], list[TrialRecords]] = defaultdict(list)
        for trial in self.study.trials:
            trials[trial.spec.task, trial.spec.arm_label].append(trial)
        return trials

    def advice(self, task: str) -> TaskAdvice | None:
        """The recommendation for one training task."""
        return self._advice.get(task)

    def arms(self, task: str) -> tuple[ArmSummary, ...]:
        """Arms trained on ``task``."""
        advice = self.advice(task)
        return advice.arms if advice else ()

    def trials(self, arm: ArmSummary) -> list[TrialRecords]:
        """The trials behind an arm, one per seed."""
        return self._trials.get((arm.task, arm.label), [])

    def failed(self) -> list[TrialRecords]:
        """Trials that ended without a result."""
        return [trial for trial in self.study.trials if trial.status in FAILED]

    def unit(self, task: str) -> Unit:
        """Unit of a task's scores and differences."""
        return NATS if self.study.task(task).score_unit == "log_probability" else POINTS

    @cached_property
    def retention_tasks(self) -> tuple[str, ...]:
        """Names of the tasks whose fall is forgetting."""
        return tuple(task.name for task in self.study.tasks if "retention" in task.roles)

    def retained(self, task: str) -> list[str]:
        """Names of the retention tasks of arms trained on ``task``: those they never saw."""
        own = trained_parts(self.study, task)
        return [name for name in self.retention_tasks if name not in own]

    def forgetting_unit(self, task: str) -> Unit:
        """Unit of the mean over retention tasks: points where any of them has accuracy."""
        units = {self.unit(name) for name in self.retained(task)}
        return NATS if units == {NATS} else POINTS

    def base(self, task: str) -> EvalRecord | None:
        """The base model on the test split of ``task``."""
        return self.study.evals.get((BASE, task, "test"))

    def _named(self, task: str, label: str | None) -> ArmSummary | None:
        return next((a for a in self.arms(task) if a.label == label), None)

    def _best(self, task: str, accept: Callable[[ArmSummary], bool]) -> ArmSummary | None:
        """By validation score: for a recommendation that does not name its best arms."""
        arms = [a for a in self.arms(task) if accept(a) and a.validation_score is not None]
        return max(arms, key=lambda a: a.validation_score or 0.0, default=None)

    def best_full(self, task: str) -> ArmSummary | None:
        """Full fine-tuning as the advice compares with it; never by the test split."""
        advice = self.advice(task)
        named = self._named(task, advice.best_full_label) if advice else None
        return named or self._best(task, lambda arm: arm.is_full)

    def best_lora(self, task: str) -> ArmSummary | None:
        """The LoRA arm of the highest utility on the validation split."""
        advice = self.advice(task)
        named = self._named(task, advice.best_lora_label) if advice else None
        return named or self._best(task, lambda arm: arm.is_lora)

    def focus(self, task: str) -> ArmSummary | None:
        """The arm the task's answer speaks of: the chosen one, else its subject."""
        advice = self.advice(task)
        if advice is None:
            return None
        named = self._named(task, advice.subject_label)
        return advice.chosen or named or self._best(task, lambda arm: True)

    def color(self, arm: ArmSummary) -> Color:
        """The arm's colour, the same in every figure."""
        return FULL if arm.is_full else self.colors.get(arm.rank or 0, MUTED)

    @cached_property
    def _variants(self) -> dict[tuple[str, str], str]:
        """(task, arm label) -> what its line is called, by rising learning rate."""
        groups: dict[tuple[str, str], list[ArmSummary]] = defaultdict(list)
        for task in self.training_tasks:
            for arm in sorted(self.arms(task), key=lambda a: a.lr):
                if arm.rank is not None:
                    words = [w for w in arm.label.split() if not w.startswith(("r=", "alpha="))]
                    groups[task, " ".join(words)].append(arm)
        return {
            (task, arm.label): " ".join(part for part in (words, alpha(arm)) if part)
            for (task, words), arms in groups.items()
            for alpha in [_alpha_words(arms)]
            for arm in arms
        }

    def series(self, task: str) -> list[Series]:
        """The LoRA arms of a task as lines over rank, by variant."""
        groups: dict[str, list[ArmSummary]] = defaultdict(list)
        for arm in self.arms(task):
            if arm.rank is not None:
                groups[self._variants[task, arm.label]].append(arm)
        every_line = list(dict.fromkeys(self._variants.values()))
        return [
            Series(
                label=safe_text(label, MAX_NAME),
                dash=DASHES[place % len(DASHES)],
                symbol=SYMBOLS[place % len(SYMBOLS)],
                arms=tuple(sorted(groups[label], key=lambda a: a.rank or 0)),
            )
            for place, label in enumerate(every_line)
            if label in groups
        ]

    def focus_series(self, task: str) -> Series | None:
        """The line that holds the best LoRA arm of the task: what single-line figures show."""
        focus = self.focus(task)
        if focus is None or focus.rank is None:
            focus = self.best_lora(task)
        lines = self.series(task)
        if focus is None:
            return lines[0] if lines else None
        return next((s for s in lines if any(a.label == focus.label for a in s.arms)), None)

    def focus_arms(self, task: str) -> list[ArmSummary]:
        """Arms of ``focus_series`` and the best full fine-tuning arm."""
        line, full = self.focus_series(task), self.best_full(task)
        return [*(line.arms if line else ()), *([full] if full else [])]
