"""Side-by-side comparison of finished studies, which stay unchanged.

It covers what they share, how their common arms compare, and their answers. One HTML page of it
opens offline.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rankscope.advise.arms import trials_by_arm
from rankscope.advise.comparisons import compare_cells, incomparable, paired_in
from rankscope.advise.recommend import recommend
from rankscope.errors import UserError
from rankscope.filesystem import check_outside
from rankscope.formatting import count, difference, safe_text, unit_of, with_interval
from rankscope.records import (
    FAILED,
    SCHEMA_VERSION,
    WAITING,
    ComparedCell,
    Provenance,
    StudyRecords,
    TaskAdvice,
    TaskRecord,
)
from rankscope.report.analysis_tables import TableRow
from rankscope.report.charts.figure import Drawn, Figure
from rankscope.report.charts.interval_rows import interval_rows
from rankscope.report.columns import Column, interval_cells
from rankscope.report.page import render_page
from rankscope.report.style import FULL_COLOR, MUTED, rank_colors
from rankscope.report.table_formats import shown, table
from rankscope.run.trials import NOT_TRAINING
from rankscope.store import Ledger


@dataclass(frozen=True, slots=True)
class _ComparedStudy:
    label: str  # Its name, or its folder if two studies share a name
    folder: str
    base: str
    trials: int
    done: int
    failed: int
    answers: tuple[TableRow, ...]
    """Rows by training task: ``task``, ``decision``, ``confidence``, ``verdict``,
    ``p_within_margin`` and ``p_better``. For the recommended arm they also have ``chosen_label``,
    and ``expected_net_gain`` with its 95 % interval, as numbers and in words."""


@dataclass(frozen=True, slots=True)
class _StudyPair:
    first: str  # Label of the first study
    second: str
    facets: tuple[TableRow, ...]  # ``what``, ``same``, and ``text``: what it is, or what differs
    only_first: tuple[str, ...]  # Arms only in the first study, with their training task
    only_second: tuple[str, ...]
    cells: tuple[ComparedCell, ...]
    notes: tuple[str, ...]  # Facts for a reader, one sentence each


@dataclass(frozen=True, slots=True)
class StudyComparison:
    studies: tuple[_ComparedStudy, ...]
    pairs: tuple[_StudyPair, ...]  # Each further study beside the first
    schema_version: int = SCHEMA_VERSION

    @property
    def training_tasks(self) -> list[str]:
        return list(dict.fromkeys(str(a["task"]) for s in self.studies for a in s.answers))


def compare(folders: Sequence[Path]) -> StudyComparison:
    """Compare each further study with the first.

    The comparison covers the arms that both have (equal settings except the seed) on every common
    task, the parts of the studies, and their answers, which are computed again from the records.
    """
    if len(folders) < 2:
        raise UserError("compare", f"{len(folders)} study folder", "two or more")
    seen: dict[Path, Path] = {}
    for folder in folders:
        if (before := seen.setdefault(folder.resolve(), folder)) is not folder:
            found = f"{before} and {folder}, which are the same folder"
            raise UserError("compare", found, "different studies")
    studies = [_load_finished_study(folder) for folder in folders]
    names = ([study.name for study in studies], [folder.resolve().name for folder in folders])
    unique = (labels for labels in names if len(set(labels)) == len(labels))
    labels = next(unique, list(map(str, folders)))
    return compare_studies(list(zip(labels, folders, studies, strict=True)))


def _load_finished_study(folder: Path) -> StudyRecords:
    study = Ledger.read(folder)
    if not any(trial.status == "done" for trial in study.trials):
        found = f"none of its {len(study.trials)} trials has finished"
        expected = "finished ones to compare"
        raise UserError(folder, found, expected, f"'rankscope status {folder}' shows their states")
    return study


def compare_studies(studies: Sequence[tuple[str, Path, StudyRecords]]) -> StudyComparison:
    """Compare studies, given (label, folder, records) of each."""
    (first_label, _, first), *others = studies
    return StudyComparison(
        tuple(_compared(*study) for study in studies),
        tuple(_pair(first_label, first, label, second) for label, _, second in others),
    )


def _compared(label: str, folder: Path, study: StudyRecords) -> _ComparedStudy:
    statuses = [trial.status for trial in study.trials]
    answers = tuple(_answer(study, advice) for advice in recommend(study).advice)
    done, failed = statuses.count("done"), sum(status in FAILED for status in statuses)
    base = study.model.label
    return _ComparedStudy(label, str(folder), base, len(statuses), done, failed, answers)


def _answer(study: StudyRecords, advice: TaskAdvice) -> TableRow:
    chosen, unit = advice.chosen, unit_of(study.task(advice.task).score_unit)
    net = chosen and chosen.expected and chosen.expected.net
    fields = {"task", "decision", "verdict", "summary", "p_within_margin", "p_better"}
    return {
        **advice.model_dump(mode="json", include=fields),
        "confidence": advice.confidence,
        "chosen_label": chosen and chosen.label,
        "expected_net_gain": net and net.value,
        "expected_net_gain_low": net and net.low,
        "expected_net_gain_high": net and net.high,
        "expected": net and f"{with_interval(net, unit)} {unit.difference}",
    }


def _pair(
    first_label: str, first: StudyRecords, second_label: str, second: StudyRecords
) -> _StudyPair:
    arms = trials_by_arm(first.trials), trials_by_arm(second.trials)
    only_first, only_second = (
        tuple(
            f"{trials[0].spec.task} {trials[0].spec.arm_label}"
            for point, trials in own.items()
            if point not in other
        )
        for own, other in (arms, arms[::-1])
    )
    cells = compare_cells(first, second)
    notes = [*_unfinished_notes(first_label, first), *_unfinished_notes(second_label, second)]
    if not arms[0].keys() & arms[1].keys():
        notes.append("The studies have no arm in common, so no arm is compared.")
    elif all(cell.arm is None for cell in cells):
        notes.append("No common arm was finished and scored on a common task in both studies.")
    names = ("what", "same", "text")
    facets = tuple(dict(zip(names, facet, strict=True)) for facet in _facets(first, second))
    return _StudyPair(
        first_label, second_label, facets, only_first, only_second, cells, tuple(notes)
    )


def _unfinished_notes(label: str, study: StudyRecords) -> Iterator[str]:
    total = len(study.trials)
    if waiting := sum(trial.status in WAITING for trial in study.trials):
        yield f"{label}: {waiting} of {total} trials have not run yet and are not counted."
    if failed := sum(trial.status in FAILED for trial in study.trials):
        yield (
            f"{label}: {failed} of {total} trials failed; their arms have fewer seeds, or no row "
            "if none is left."
        )


# --- what two studies are made of -----------------------------------------------------------------


def _facets(first: StudyRecords, second: StudyRecords) -> Iterator[tuple[str, bool, str]]:
    """Yield (aspect, whether it is the same, its value or the difference)."""
    one, two = first.model, second.model
    same_base = one.sha256 == two.sha256
    text = f"{one.label} (sha256 {one.sha256[:12]})"
    if not same_base:
        text += (
            f" and {two.label} (sha256 {two.sha256[:12]}): differences between scores include the "
            "bases; compare the gains over each base instead"
        )
    yield "base model", same_base, text
    if how := _differing(one, two, "dtype", "quantize", "prompt_format"):
        yield "how the base runs", False, how
    for task in first.tasks:
        if any(task.name == other.name for other in second.tasks):
            paired = paired_in(first, second, task.name)
            yield _task_facet(task, second.task(task.name), paired, same_base)
    names = [{task.name for task in study.tasks} for study in (first, second)]
    alone = [
        f"only the {which} has {', '.join(sorted(extra))}"
        for which, extra in (("first", names[0] - names[1]), ("second", names[1] - names[0]))
        if extra
    ]
    yield "tasks", not alone, "; ".join(alone) or ", ".join(task.name for task in first.tasks)
    for what, section in (("training protocol", "train"), ("objective", "objective")):
        configs = (getattr(study.config, section) for study in (first, second))
        differing = differences(*(c.model_dump(exclude=set(NOT_TRAINING)) for c in configs))
        yield what, not differing, differing or "all settings of the study files are equal"
        if section == "train":
            yield _trials_facet(first, second)
    versions = [s.provenance.versions | {"device": s.model.device} for s in (first, second)]
    differing = differences(*versions)
    same = f"rankscope {versions[0]['rankscope']} on {versions[0]['device']}, the same libraries"
    yield "versions and device", not differing, differing or same


def _task_facet(
    task: TaskRecord, other: TaskRecord, paired: bool, same_base: bool
) -> tuple[str, bool, str]:
    """Say whether the scores of a common task can be compared item by item."""
    reason = incomparable(task, other, paired, same_base)
    if reason is not None:
        text = f"{reason}: not comparable, so no score is compared"
    elif paired:
        text = f"same items, prompts and scoring (sha256 {task.sha256[:12]}): compared item by item"
    else:
        fields = ("metric", "rows", "source", "num_fewshot", "prompt_format", "dropped", "parts")
        differing = _differing(task, other, *fields)
        differing = differing or "items, tokenizer, scorer or evaluation settings differ"
        text = (
            f"sha256 {task.sha256[:12]} and {other.sha256[:12]}: {differing}. Not paired: two "
            "means with their own intervals"
        )
    return f"task {task.name}", reason is None and paired, text


def _trials_facet(first: StudyRecords, second: StudyRecords) -> tuple[str, bool, str]:
    """Say whether trials of the same arm and seed are the same trial, by their ids."""
    ids = [{(*t.spec.arm, t.spec.seed): t.spec.trial_id for t in s.trials} for s in (first, second)]
    both = ids[0].keys() & ids[1].keys()
    equal = sum(ids[0][key] == ids[1][key] for key in both)
    text = (
        f"{equal} of {len(both)} of the same arm and seed have the same id; the others differ in "
        "base, how the base runs, training rows, protocol or training code version"
    )
    if not both:
        text = "no trial with the same arm and seed in both"
    elif equal == len(both):
        text = f"all {equal} of the same arm and seed have the same id: base, rows, protocol"
    return "trials of common arms", 0 < equal == len(both), text


def differences(one: Mapping[str, object], two: Mapping[str, object]) -> str:
    """Write ``epochs 3 and 1; rows test 60 and 40; ...`` for every differing field."""
    one, two = dict(_flat(one)), dict(_flat(two))
    return "; ".join(
        f"{name.replace('_', ' ')} {_text(one.get(name))} and {_text(two.get(name))}"
        for name in dict.fromkeys([*one, *two])
        if _text(one.get(name)) != _text(two.get(name))
    )


def _differing(one: object, two: object, *fields: str) -> str:
    return differences(
        *({field: getattr(record, field) for field in fields} for record in (one, two))
    )


def _flat(values: Mapping[str, object], outer: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{outer}{name} ")
        else:
            yield f"{outer}{name}", value


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    return "none" if value in (None, "") else str(value)


# --- the page -------------------------------------------------------------------------------------

MAX_ARMS = 80  # Arms drawn; all of them are in the table
FACET_COLUMNS = {"text": Column("details")}
_SCORES = dict.fromkeys(("first", "second", "difference"), Column(digits=2, unit_from="score_unit"))
_CAPTION = """Right of zero, the second study scored higher. Lines are 95 % intervals. A hollow \
mark is unpaired: the studies did not score the same items in the same way."""


def check_page(out: Path, folders: Sequence[Path]) -> None:
    for folder in folders:
        check_outside(out, folder, "--out")
    if (out.exists() and not out.is_file()) or not out.parent.is_dir():
        raise UserError(
            f"{out}: cannot write the report here", expected="a file in an existing folder"
        )


def render_comparison(comparison: StudyComparison, provenance: Provenance) -> str:
    ranks = _compared_ranks(comparison)
    parts = [
        (pair, table(pair.facets, FACET_COLUMNS), _comparison_figures(pair, number, ranks))
        for number, pair in enumerate(comparison.pairs)
    ]
    return render_page(
        "comparison.html.j2",
        [figure for _, _, of_pair in parts for figure in of_pair],
        ranks,
        provenance,
        comparison=comparison,
        # The full paths of the studies stay private, because a page is passed on.
        folders=[(s.label, Path(s.folder).name or s.label) for s in comparison.studies],
        parts=parts,
    )


def compared_table(cells: Sequence[ComparedCell]) -> pd.DataFrame:
    frame = shown(table([_row(cell) for cell in cells], _SCORES))
    return frame.drop(columns="score unit", errors="ignore")


def _compared_ranks(comparison: StudyComparison) -> tuple[int, ...]:
    cells = [cell for pair in comparison.pairs for cell in pair.cells]
    return tuple(sorted({cell.rank for cell in cells if cell.rank is not None}))


def _comparison_figures(pair: _StudyPair, number: int, ranks: tuple[int, ...]) -> list[Figure]:
    """Draw a figure for each training task, after one for the bases, which have none."""
    tasks = dict.fromkeys(cell.trained_on for cell in pair.cells)
    return [
        _draw_pair(pair, f"compared-{number}-{position}", task, ranks)
        for position, task in enumerate(tasks)
    ]


def _draw_pair(pair: _StudyPair, key: str, task: str | None, ranks: tuple[int, ...]) -> Figure:
    cells = [cell for cell in pair.cells if cell.trained_on == task]
    # The drop-down opens on the training task.
    cells.sort(key=lambda cell: cell.tested_on != task)
    frame = compared_table(cells)
    is_drawn = frame["arm"].isin(list(dict.fromkeys(frame["arm"]))[:MAX_ARMS])
    marks = [cell for cell, shown in zip(cells, is_drawn, strict=True) if shown]
    units = {unit_of(cell.score_unit).difference for cell in cells}
    colors = rank_colors(ranks)
    drawn = interval_rows(
        frame[is_drawn],
        "arm",
        colors=[(FULL_COLOR if c.full else colors.get(c.rank or 0, MUTED)).light for c in marks],
        hollow=[not cell.paired for cell in marks],
        words=["tested on", "paired", "same models"],
        x_title=f"difference, {'points or nats' if len(units) > 1 else units.pop()}",
        layer="tested on",
    )
    about = "untuned bases" if task is None else f"arms trained on {task}"
    return Figure(
        key=key,
        title=f"{safe_text(pair.second, 60)} minus {safe_text(pair.first, 60)}, {about}",
        finding=compared_text(cells),
        data=frame,
        caption=_CAPTION,
        choice_name="Tested on",
        **(Drawn() if task is None else drawn),
    )


def _row(cell: ComparedCell) -> TableRow:
    return {
        "arm": cell.arm or "base",
        "tested on": cell.tested_on,
        **interval_cells("first", cell.first),
        **interval_cells("second", cell.second),
        **interval_cells("difference", cell.difference),
        "paired": "yes" if cell.paired else "no",
        "same models": "yes" if cell.same_models else "no",
        "items": cell.difference.n,
        "seeds": cell.difference.seeds,
        "score_unit": cell.score_unit,
    }


def compared_text(cells: Sequence[ComparedCell]) -> str:
    arms = len({cell.arm for cell in cells})
    clear = [cell for cell in cells if cell.difference.is_clear_of_zero]
    compared = "The bases" if cells[0].arm is None else f"{count(arms, 'arm')} in both studies"
    same, left_out = sum(cell.same_models for cell in cells), arms - MAX_ARMS
    paired = sum(cell.paired for cell in cells)
    text = f"{compared}, {count(len(cells), 'score')} compared, {paired} of them item by item; "
    text += f"{len(clear)} with an interval that excludes zero"
    if same:
        text += f"; {same} are of the very same models"
    if clear:
        most = max(clear, key=lambda cell: abs(cell.difference.value))
        arm = "" if most.arm is None else f"{most.arm} "
        text += f"; the largest is {difference(most.difference.value, unit_of(most.score_unit))} "
        text += f"({arm}on {most.tested_on})"
    text += "."
    if left_out > 0:
        text += f" {count(left_out, 'arm')} {'is' if left_out == 1 else 'are'} only in the table."
    return text
