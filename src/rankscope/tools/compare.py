"""Compare finished studies side by side, without changing them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rankscope.advise.arms import trials_by_arm
from rankscope.advise.comparisons import compare_cells, incomparable, paired_in
from rankscope.advise.recommend import recommend
from rankscope.errors import UserError
from rankscope.filesystem import check_outside
from rankscope.records import (
    FAILED,
    WAITING,
    ComparedCell,
    ComparedStudy,
    Facet,
    StudyAnswer,
    StudyComparison,
    StudyPair,
    StudyRecords,
    TaskRecord,
)
from rankscope.run.trials import NOT_TRAINING
from rankscope.store import Ledger


def compare(folders: Sequence[Path]) -> StudyComparison:
    """Compare each further study with the first.

    Compares the arms that both have (equal settings except the seed) on every common task, what the
    studies are made of, and their answers, which are computed again from the records.
    """
    _check_folders(folders)
    studies = [load_finished_study(folder) for folder in folders]
    labels = _study_labels(folders, studies)
    first, *others = zip(labels, studies, strict=True)
    return StudyComparison(
        studies=tuple(map(compared_study, labels, folders, studies)),
        pairs=tuple(compare_pair(*first, *other) for other in others),
    )


def _check_folders(folders: Sequence[Path]) -> None:
    if len(folders) < 2:
        raise UserError("compare", f"{len(folders)} study folder", "two or more")
    seen: dict[Path, Path] = {}
    for folder in folders:
        before = seen.setdefault(folder.resolve(), folder)
        if before is not folder:
            raise UserError(
                "compare", f"{before} and {folder}, which are the same folder", "different studies"
            )


def check_page(out: Path, folders: Sequence[Path]) -> None:
    for folder in folders:
        check_outside(out, folder, "--out")
    if (out.exists() and not out.is_file()) or not out.parent.is_dir():
        raise UserError(
            f"{out}: cannot write the report here", expected="a file in an existing folder"
        )


def load_finished_study(folder: Path) -> StudyRecords:
    with Ledger.open(folder, write=False) as ledger:
        study = ledger.load()
    if not any(trial.status == "done" for trial in study.trials):
        raise UserError(
            folder,
            f"none of its {len(study.trials)} trials has finished",
            "finished ones to compare",
            f"'rankscope status {folder}' shows their states",
        )
    return study


def _study_labels(folders: Sequence[Path], studies: Sequence[StudyRecords]) -> list[str]:
    for names in ([study.name for study in studies], [path.resolve().name for path in folders]):
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def compared_study(label: str, folder: Path, study: StudyRecords) -> ComparedStudy:
    statuses = [trial.status for trial in study.trials]
    return ComparedStudy(
        label=label,
        folder=str(folder),
        base=study.model.label,
        trials=len(statuses),
        done=statuses.count("done"),
        failed=sum(status in FAILED for status in statuses),
        answers=tuple(
            StudyAnswer(
                task=advice.task,
                decision=advice.decision,
                confidence=advice.confidence,
                verdict=advice.verdict,
                chosen_label=None if advice.chosen is None else advice.chosen.label,
            )
            for advice in recommend(study).advice
        ),
    )


def compare_pair(
    first_label: str, first: StudyRecords, second_label: str, second: StudyRecords
) -> StudyPair:
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
    return StudyPair(
        first=first_label,
        second=second_label,
        facets=tuple(facets(first, second)),
        only_first=only_first,
        only_second=only_second,
        cells=cells,
        notes=(
            *_unfinished_notes(first_label, first),
            *_unfinished_notes(second_label, second),
            *_common_notes(len(arms[0].keys() & arms[1].keys()), cells),
        ),
    )


def _unfinished_notes(label: str, study: StudyRecords) -> Iterator[str]:
    waiting = sum(trial.status in WAITING for trial in study.trials)
    failed = sum(trial.status in FAILED for trial in study.trials)
    total = len(study.trials)
    if waiting:
        yield f"{label}: {waiting} of {total} trials have not run yet and are not counted."
    if failed:
        yield (
            f"{label}: {failed} of {total} trials failed; their arms have fewer seeds, or no row "
            "if none is left."
        )


def _common_notes(common_arms: int, cells: Sequence[ComparedCell]) -> list[str]:
    if not common_arms:
        return ["The studies have no arm in common, so no arm is compared."]
    if all(cell.arm is None for cell in cells):
        return ["No common arm was finished and scored on a common task in both studies."]
    return []


def facets(first: StudyRecords, second: StudyRecords) -> Iterator[Facet]:
    one, two = first.model, second.model
    same_base = one.sha256 == two.sha256
    text = f"{one.label} (sha256 {one.sha256[:12]})"
    if not same_base:
        text += (
            f" and {two.label} (sha256 {two.sha256[:12]}): differences between scores include the "
            "bases; compare the gains over each base instead"
        )
    yield Facet(what="base model", same=same_base, text=text)
    fields = ("dtype", "quantize", "prompt_format")
    if how := differences(_values(one, fields), _values(two, fields)):
        yield Facet(what="how the base runs", same=False, text=how)
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
    tasks = "; ".join(alone) or ", ".join(task.name for task in first.tasks)
    yield Facet(what="tasks", same=not alone, text=tasks)
    yield _section_facet("training protocol", "train", first, second)
    yield _training_facet(first, second)
    yield _section_facet("objective", "objective", first, second)
    versions = [
        {"rankscope": s.provenance.rankscope, "device": s.model.device, **s.provenance.libraries}
        for s in (first, second)
    ]
    differing = differences(*versions)
    same = f"rankscope {versions[0]['rankscope']} on {versions[0]['device']}, the same libraries"
    yield Facet(what="versions and device", same=not differing, text=differing or same)


def _task_facet(task: TaskRecord, other: TaskRecord, paired: bool, same_base: bool) -> Facet:
    """Whether the scores of a common task can be compared item by item."""
    reason = incomparable(task, other, paired, same_base)
    if reason is not None:
        text = f"{reason}: not comparable, so no score is compared"
    elif paired:
        text = f"same items, prompts and scoring (sha256 {task.sha256[:12]}): compared item by item"
    else:
        fields = ("metric", "rows", "source", "num_fewshot", "prompt_format", "dropped", "parts")
        differing = differences(_values(task, fields), _values(other, fields))
        differing = differing or "items, tokenizer, scorer or evaluation settings differ"
        text = (
            f"sha256 {task.sha256[:12]} and {other.sha256[:12]}: {differing}. Not paired: two "
            "means with their own intervals"
        )
    return Facet(what=f"task {task.name}", same=reason is None and paired, text=text)


def _section_facet(what: str, section: str, first: StudyRecords, second: StudyRecords) -> Facet:
    differing = differences(
        *(getattr(s.config, section).model_dump(exclude=set(NOT_TRAINING)) for s in (first, second))
    )
    text = differing or "all settings of the study files are equal"
    return Facet(what=what, same=not differing, text=text)


def _training_facet(first: StudyRecords, second: StudyRecords) -> Facet:
    """Whether trials of the same arm and seed are the same trial, by their ids."""
    what = "trials of common arms"
    ids = [{(*t.spec.arm, t.spec.seed): t.spec.trial_id for t in s.trials} for s in (first, second)]
    both = ids[0].keys() & ids[1].keys()
    equal = sum(ids[0][key] == ids[1][key] for key in both)
    if not both:
        return Facet(what=what, same=False, text="no trial with the same arm and seed in both")
    if equal == len(both):
        text = f"all {equal} of the same arm and seed have the same id: base, rows, protocol"
        return Facet(what=what, same=True, text=text)
    text = (
        f"{equal} of {len(both)} of the same arm and seed have the same id; the others differ in "
        "base, how the base runs, training rows, protocol or training code version"
    )
    return Facet(what=what, same=False, text=text)


def differences(one: Mapping[str, object], two: Mapping[str, object]) -> str:
    """``epochs 3 and 1; rows test 60 and 40; ...`` for every differing field."""
    one, two = dict(_flat(one)), dict(_flat(two))
    return "; ".join(
        f"{name.replace('_', ' ')} {_text(one.get(name))} and {_text(two.get(name))}"
        for name in dict.fromkeys([*one, *two])
        if _text(one.get(name)) != _text(two.get(name))
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
    if isinstance(value, Mapping):
        return " ".join(f"{name} {_text(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    return "none" if value in (None, "") else str(value)


def _values(record: object, fields: Sequence[str]) -> dict[str, object]:
    return {field: getattr(record, field) for field in fields}
