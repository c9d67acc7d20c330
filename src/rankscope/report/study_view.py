"""Lookups over one study: arms by task, their trials, units, reference scores and colors."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from rankscope.formatting import (
    MAX_NAME,
    Unit,
    difference,
    margin_text,
    mean_unit,
    safe_text,
    unit_of,
)
from rankscope.records import (
    BASE,
    ArmSummary,
    Estimate,
    EvalRecord,
    ExpectedChange,
    Recommendation,
    StudyRecords,
    TaskAdvice,
    TrialRecords,
    TrialSpec,
    trained_parts,
)
from rankscope.report.charts.rank_lines import RankAxis, RankLine, RankPoint
from rankscope.report.columns import Column
from rankscope.report.style import DASHES, FULL_COLOR, MUTED, SYMBOLS, Color, rank_colors


def change_on(arm: ArmSummary, task: str) -> Estimate | None:
    """Return the change of an arm against the base on any task."""
    if task == arm.task:
        return arm.gain
    return arm.transfer.get(task) or arm.retention.get(task)


def _alpha_text(arms: list[ArmSummary]) -> Callable[[ArmSummary], str]:
    """Choose the name of alpha that takes the fewest values, and return a function that writes it.

    The name is a number, or a multiple of the rank or of its root: that is what the study varies.
    The default, 2r, needs no name.
    """

    def names(arm: ArmSummary) -> tuple[str, ...]:
        alpha, rank = arm.alpha or 0, arm.rank or 1
        return f"{alpha / rank:g}r", f"{alpha:g}", f"{alpha / rank**0.5:g}sqrt(r)"

    known = [names(arm) for arm in arms if arm.alpha is not None and arm.rank]
    values = [set(of) for of in zip(*known, strict=True)]
    if not known or values[0] == {"2r"}:
        return lambda arm: ""
    fewest = min(range(len(values)), key=lambda form: len(values[form]))
    return lambda arm: f"alpha={names(arm)[fewest]}"


@dataclass(frozen=True)
class StudyView:
    """Lookups over one study and its recommendation; every method is pure."""

    study: StudyRecords
    recommendation: Recommendation
    unlimited: StudyRecords | None = None  # With all trials, if ``study`` has the page's alone

    @property
    def whole(self) -> StudyRecords:
        return self.unlimited or self.study

    @cached_property
    def training_tasks(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.study.tasks if task.trained_on)

    @cached_property
    def _advice(self) -> dict[str, TaskAdvice]:
        return {advice.task: advice for advice in self.recommendation.advice}

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({t.spec.rank for t in self.study.trials if t.spec.rank is not None}))

    @cached_property
    def colors(self) -> dict[int, Color]:
        return rank_colors(self.ranks)

    @cached_property
    def _trials(self) -> dict[tuple[str, str], list[TrialRecords]]:
        trials: dict[tuple[str, str], list[TrialRecords]] = defaultdict(list)
        for trial in self.study.trials:
            trials[trial.spec.task, trial.spec.arm_label].append(trial)
        return trials

    def key(self, name: str, task: str) -> str:
        return f"{name}-{self.training_tasks.index(task)}"

    def advice(self, task: str) -> TaskAdvice:
        return self._advice[task]

    def arms(self, task: str) -> tuple[ArmSummary, ...]:
        return self.advice(task).arms

    def arm(self, task: str, label: str | None) -> ArmSummary | None:
        return next((arm for arm in self.arms(task) if arm.label == label), None)

    def trials(self, arm: ArmSummary) -> list[TrialRecords]:
        return self._trials.get((arm.task, arm.label), [])

    def spec(self, arm: ArmSummary) -> TrialSpec:
        """Return the settings of an arm: those of its first trial."""
        return self._trials[arm.task, arm.label][0].spec

    def unit(self, task: str) -> Unit:
        return unit_of(self.study.task(task).score_unit)

    def plane_titles(self, task: str, kept: Unit) -> tuple[str, str]:
        """Return the column titles of gain and retention change; ``kept`` is the unit of the
        latter."""
        gain = f"gain over base, {self.unit(task).difference}"
        return gain, f"retention change, {kept.difference}"

    def plane_columns(self, task: str, kept: Unit) -> dict[str, Column]:
        units = zip(self.plane_titles(task, kept), (self.unit(task), kept), strict=True)
        return {title: Column(unit=unit, digits=unit.digits + 1) for title, unit in units}

    def point_names(self, task: str) -> dict[str, str]:
        """Return the text at each arm's point: ``r=8``, or the label of a prompt.

        Full fine-tuning at two rates shows them.
        """
        arms, full = self.arms(task), self.full(task)
        names = {arm.label: arm.short_label if arm.trains else arm.label for arm in arms}
        return names | {arm.label: f"full {arm.lr:g}" for arm in full if len(full) > 1}

    def front(self, task: str) -> list[str]:
        """List the arms that no other arm beats in gain and retention together, by rising gain.

        ``ArmSummary.on_pareto_front`` counts parameters, too; a plane shows only two quantities.
        """
        points = [
            (-a.gain.value, -change.value, a.label)
            for a in self.arms(task)
            if a.gain and (change := self.retention_change(a))
        ]
        front: list[str] = []
        least = float("inf")
        for _, forgotten, label in sorted(points):
            if forgotten < least:
                least = forgotten
                front.append(label)
        return front[::-1]

    @cached_property
    def retention_tasks(self) -> tuple[str, ...]:
        """Names of the tasks whose fall is forgetting."""
        return tuple(task.name for task in self.study.tasks if "retention" in task.roles)

    def retained(self, task: str) -> list[str]:
        """Name the retention tasks that arms trained on ``task`` were not trained on."""
        trained = trained_parts(self.study.tasks, task)
        return [name for name in self.retention_tasks if name not in trained]

    def retention_unit(self, task: str) -> Unit:
        """Return the unit of the mean over retention tasks: points unless all are in nats."""
        return mean_unit([self.study.task(name).score_unit for name in self.retained(task)])

    def retention_change(self, arm: ArmSummary) -> Estimate | None:
        """Return measured forgetting with its sign turned: below zero means lost.

        Pages show retention in this form only.
        """
        return None if arm.forgetting is None else -arm.forgetting

    def net_unit(self, task: str) -> Unit:
        """Return the unit of expected net gains and of the margin."""
        return (
            self.unit(task) if self.study.config.objective.in_domain else self.retention_unit(task)
        )

    def expected(self, arm: ArmSummary) -> dict[str, tuple[ExpectedChange | None, Unit]]:
        """Return the expectations of an arm, with units: columns of every table."""
        gain = kept = net = None
        if (of := arm.expected) is not None:
            gain, net = of.changes.get(arm.task), of.net
            kept = None if of.forgetting is None else -of.forgetting
        return {
            "expected_gain": (gain, self.unit(arm.task)),
            "expected_retention_change": (kept, self.retention_unit(arm.task)),
            "expected_net_gain": (net, self.net_unit(arm.task)),
        }

    def measured(self, arm: ArmSummary) -> dict[str, tuple[Estimate | None, Unit]]:
        """Return the measurements of an arm on test items, with units."""
        return {
            "score": (arm.score, self.unit(arm.task)),
            "gain": (arm.gain, self.unit(arm.task)),
            "retention_change": (self.retention_change(arm), self.retention_unit(arm.task)),
        }

    def margin(self, task: str) -> str:
        """Write the margin, such as ``2 points``."""
        return margin_text(self.study.config.objective.margin, self.net_unit(task))

    def base(self, task: str) -> EvalRecord | None:
        """Return the base model's record on the test split of ``task``."""
        return self.study.evals.get((BASE, task, "test"))

    def candidates(self, task: str) -> list[ArmSummary]:
        """Return every configuration at its learning rate of the highest expected net gain."""
        labels = self.advice(task).candidate_labels
        return [arm for arm in self.arms(task) if arm.label in labels]

    def best_full(self, task: str) -> ArmSummary | None:
        """Return the full fine-tuning arm of the highest expected net gain."""
        return self.arm(task, self.advice(task).best_full_label)

    def full(self, task: str) -> list[ArmSummary]:
        """Return the arms of full fine-tuning, by rising learning rate."""
        return sorted((arm for arm in self.arms(task) if arm.is_full), key=lambda arm: arm.lr)

    def best_lora(self, task: str) -> ArmSummary | None:
        """Return the LoRA arm of the highest expected net gain."""
        return self.arm(task, self.advice(task).best_lora_label)

    def focus(self, task: str) -> ArmSummary | None:
        """Return the arm of the answer: the recommended one, or the closest to it."""
        return self.arm(task, self.advice(task).subject_label)

    def color(self, arm: ArmSummary | None) -> Color:
        if arm is not None and arm.is_full:
            return FULL_COLOR
        return self.colors.get((arm and arm.rank) or 0, MUTED)

    @cached_property
    def _variants(self) -> dict[tuple[str, str], tuple[str, str]]:
        """Maps (task, arm) to the label of its line, with and without the rate, by rising rate."""
        groups: dict[tuple[str, str], list[ArmSummary]] = defaultdict(list)
        for task in self.training_tasks:
            for arm in sorted(self.arms(task), key=lambda a: a.lr):
                if arm.rank is not None:
                    groups[task, self.spec(arm).label_without("rank", "alpha")].append(arm)
        return {
            (task, arm.label): (
                f"{words} {alpha(arm)}".strip(),
                f"{self.spec(arm).label_without('rank', 'alpha', 'lr')} {alpha(arm)}".strip(),
            )
            for (task, words), arms in groups.items()
            for alpha in [_alpha_text(arms)]
            for arm in arms
        }

    @cached_property
    def _line_labels(self) -> list[str]:
        return list(dict.fromkeys(line for line, _ in self._variants.values()))

    def lines(self, task: str) -> dict[str, list[ArmSummary]]:
        """Return arms that differ only in rank, by rising rank, under the label of their line."""
        groups: dict[str, list[ArmSummary]] = defaultdict(list)
        for arm in self.arms(task):
            if arm.rank is not None:
                groups[self._variants[task, arm.label][0]].append(arm)
        ordered = [label for label in self._line_labels if label in groups]
        return {label: sorted(groups[label], key=lambda a: a.rank or 0) for label in ordered}

    def variants(self, task: str) -> dict[str, list[ArmSummary]]:
        """Return arms that differ only in rank and rate, by the rest of their label; focus
        first."""
        groups: dict[str, list[ArmSummary]] = defaultdict(list)
        focus = self.focus_line(task)
        for _, arms in sorted(self.lines(task).items(), key=lambda line: line[0] != focus):
            groups[self._variants[task, arms[0].label][1]] += arms
        return dict(groups)

    def line_style(self, label: str) -> tuple[str, str]:
        """Return dash and symbol."""
        place = self._line_labels.index(label)
        return DASHES[place % len(DASHES)], SYMBOLS[place % len(SYMBOLS)]

    def arm_style(self, arm: ArmSummary) -> tuple[str, str]:
        line = self._variants.get((arm.task, arm.label))
        return self.line_style(line[0]) if line else ("solid", "square")

    def focus_line(self, task: str) -> str | None:
        """Return the label of the line of the focus arm or, if it has no rank, of the best LoRA
        arm."""
        focus = self.focus(task)
        if focus is None or focus.rank is None:
            focus = self.best_lora(task)
        if focus is None:
            return next(iter(self.lines(task)), None)
        return self._variants.get((task, focus.label), (None, None))[0]

    def focus_arms(self, task: str) -> list[ArmSummary]:
        """Return the arms of the focus line and the best full fine-tuning arm."""
        line, full = self.lines(task).get(self.focus_line(task) or "", []), self.best_full(task)
        return [*line, *([full] if full else [])]

    def rank_axis(self, task: str) -> RankAxis:
        """Return the horizontal axis of figures over rank."""
        focus, drawn = self.focus_line(task), []
        for label, arms in self.lines(task).items():
            points = tuple(RankPoint(a.label, a.rank or 1, self.color(a)) for a in arms)
            drawn.append(RankLine(safe_text(label, MAX_NAME), *self.line_style(label), points))
        full = self.best_full(task)
        focus = None if focus is None else safe_text(focus, MAX_NAME)
        return RankAxis(tuple(drawn), focus, full.label if full else None)


def retention_text(change: float, unit: Unit) -> str:
    """Write a retention change, such as ``retention -3.2 points``."""
    return f"retention {difference(change, unit)}"
