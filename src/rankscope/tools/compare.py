"""Studies side by side: read as they are, changed in nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rankscope.advise.arms import trials_by_arm
from rankscope.advise.cross_study import compare_cells, incomparable, paired_in
from rankscope.advise.recommend import recommend
from rankscope.errors import UserError
from rankscope.records import (
    FAILED,
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

WAITING = ("planned", "trained")


def compare(folders: Sequence[Path]) -> StudyComparison:
    """Compare finished studies: each of the others with the first.

    Arms that both have (all settings but the seed), task by task; what the studies were made of;
    and the answers, which are computed afresh from the records. Nothing is written.

    Args:
        folders: two or more study folders.

    Raises:
        UserError: fewer than two, the same folder twice, no study there, or none of its trials done.
        IntegrityError: a stored record or table was altered.
    """
    check_folders(folders)
    studies = [load_finished_study(folder) for folder in folders]
    labels = study_labels(folders, studies)
    sides = [
        compared_study(label, folder, study)
        for label, folder, study in zip(labels, folders, studies, strict=True)
    ]
    first, *others = zip(labels, studies, strict=True)
    return StudyComparison(
        studies=tuple(sides), pairs=tuple(compare_pair(*first, *other) for other in others)
    )


def check_folders(folders: Sequence[Path]) -> None:
    """Two different folders at least. Raises UserError."""
    if len(folders) < 2:
        raise UserError(f"compare: found {len(folders)} study folder, expected two or more")
    seen: dict[Path, Path] = {}
    for folder in folders:
        before = seen.setdefault(folder.resolve(), folder)
        if before is not folder:
            raise UserError(
                f"compare: {before} and {folder} are the same folder; expected different studies"
            )


def check_inside(out: Path, folders: Sequence[Path]) -> None:
    """A page belongs into no study, whose folder holds what its ledger names. Raises UserError."""
    # As a link is written and where it leads to: neither may be a study's.
    places = (out.parent.resolve() / out.name, out.resolve())
    for folder in folders:
        if any(place.is_relative_to(folder.resolve()) for place in places):
            raise UserError(f"{out}: lies inside the study {folder}; give --out another place")


def load_finished_study(folder: Path) -> StudyRecords:
    """The records of a study with at least one finished trial. Raises UserError, IntegrityError."""
    with Ledger.open(folder, write=False) as ledger:
        study = ledger.load()
    if not any(trial.status == "done" for trial in study.trials):
        raise UserError(
            f"{folder}: none of its {len(study.trials)} trials has finished, so nothing "
            f"can be compared; 'rankscope status {folder}' says where they stand"
        )
    return study


def study_labels(folders: Sequence[Path], studies: Sequence[StudyRecords]) -> list[str]:
    """The studies' names; their folders' where a name stands twice, as a path if need be."""
    for names in ([study.name for study in studies], [path.resolve().name for path in folders]):
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def compared_study(label: str, folder: Path, study: StudyRecords) -> ComparedStudy:
    """One side: what it is, and what it answers."""
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
                headline=advice.headline,
                chosen_label=None if advice.chosen is None else advice.chosen.label,
            )
            for advice in recommend(study).advice
        ),
    )


def compare_pair(
    first_label: str, first: StudyRecords, second_label: str, second: StudyRecords
) -> StudyPair:
    """One study against the first."""
    arms = trials_by_arm(first), trials_by_arm(second)
    only = [
        tuple(
            f"{arm[0].spec.task} {arm[0].spec.arm_label}"
            for point, arm in own.items()
            if point not in other
        )
        for own, other in (arms, arms[::-1])
    ]
    cells = compare_cells(first, second)
    return StudyPair(
        first=first_label,
        second=second_label,
        facets=tuple(facets(first, second)),
        only_first=only[0],
        only_second=only[1],
        cells=cells,
        notes=(
            *unfinished_notes(first_label, first),
            *unfinished_notes(second_label, second),
            *common_notes(len(arms[0].keys() & arms[1].keys()), cells),
        ),
    )


def unfinished_notes(label: str, study: StudyRecords) -> list[str]:
    """That trials are still to run, or failed."""
    waiting = sum(trial.status in WAITING for trial in study.trials)
    failed = sum(trial.status in FAILED for trial in study.trials)
    total = len(study.trials)
    found = []
    if waiting:
        found.append(f"{label}: {waiting} of {total} trials are still to run; they count nowhere.")
    if failed:
        found.append(
            f"{label}: {failed} of {total} trials failed; their arms have fewer "
            "seeds, or no row where none is left."
        )
    return found


def common_notes(common: int, cells: Sequence[ComparedCell]) -> list[str]:
    """That the studies have no arm in common, or none that both finished on a common task."""
    if not common:
        return ["The studies have no arm in common, so no arm is compared."]
    if all(cell.arm is None for cell in cells):
        return ["No arm that both have was finished and scored on a common task in both."]
    return []


def facets(first: StudyRecords, second: StudyRecords) -> list[Facet]:
    """What both are made of: base, every common task, training, rules, versions."""
    return [
        base_facet(first, second),
        *(f for f in [model_settings_facet(first, second)] if f is not None),
        *(
            task_facet(
                task,
                second.task(task.name),
                paired_in(first, second, task.name),
                first.model.sha256 == second.model.sha256,
            )
            for task in first.tasks
            if any(task.name == other.name for other in second.tasks)
        ),
        other_tasks_facet(first, second),
        section_facet("training protocol", "train", first, second, NOT_TRAINING),
        training_facet(first, second),
        section_facet("rule of choice", "objective", first, second, frozenset()),
        versions_facet(first, second),
    ]


def base_facet(first: StudyRecords, second: StudyRecords) -> Facet:
    """The base model, by the hash of its weights and configuration."""
    one, two = first.model, second.model
    if one.sha256 == two.sha256:
        return Facet(what="base model", same=True, text=f"{one.label} (sha256 {one.sha256[:12]})")
    text = (
        f"{one.label} (sha256 {one.sha256[:12]}) and {two.label} (sha256 {two.sha256[:12]}): a "
        "difference of scores is one of bases too; look at the gains over each base"
    )
    return Facet(what="base model", same=False, text=text)


def model_settings_facet(first: StudyRecords, second: StudyRecords) -> Facet | None:
    """How the base is held, computed and asked."""
    fields = ("dtype", "quantize", "prompt_format")
    return same_or_not(
        "how the base runs",
        {field: getattr(first.model, field) for field in fields},
        {field: getattr(second.model, field) for field in fields},
    )


def task_facet(task: TaskRecord, other: TaskRecord, paired: bool, same_base: bool) -> Facet:
    """One task that both have: whether its scores may be compared item by item."""
    what = f"task {task.name}"
    apart = incomparable(task, other, paired, same_base)
    if apart is not None:
        return Facet(
            what=what, same=False, text=f"{apart}: not comparable, so no score is compared"
        )
    if paired:
        text = (
            f"the same items, prompts and scoring (sha256 {task.sha256[:12]}): "
            "compared item by item"
        )
        return Facet(what=what, same=True, text=text)
    fields = ("metric", "rows", "source", "num_fewshot", "prompt_format", "dropped", "parts")
    differing = differences(
        {field: getattr(task, field) for field in fields},
        {field: getattr(other, field) for field in fields},
    )
    text = (
        f"sha256 {task.sha256[:12]} and {other.sha256[:12]}: "
        + (
            "; ".join(differing)
            if differing
            else "items, tokenizer, scorer or the settings of evaluation differ"
        )
        + ". No paired comparison: two means with their own intervals"
    )
    return Facet(what=what, same=False, text=text)


def other_tasks_facet(first: StudyRecords, second: StudyRecords) -> Facet:
    """Tasks that one study alone has."""
    one, two = ({task.name for task in study.tasks} for study in (first, second))
    alone = [
        f"the {which} alone has {', '.join(sorted(names))}"
        for which, names in (("first", one - two), ("second", two - one))
        if names
    ]
    text = "; ".join(alone) or ", ".join(task.name for task in first.tasks)
    return Facet(what="tasks", same=not alone, text=text)


def section_facet(
    what: str, section: str, first: StudyRecords, second: StudyRecords, left_out: frozenset[str]
) -> Facet:
    """A section of both study files as resolved."""
    one, two = (
        {k: v for k, v in section_of(s, section).items() if k not in left_out}
        for s in (first, second)
    )
    return same_or_not(what, one, two) or Facet(
        what=what, same=True, text="every setting of the study files is the same"
    )


def section_of(study: StudyRecords, section: str) -> Mapping[str, object]:
    """A section of a study file as resolved; empty where the record holds none."""
    found: Mapping[str, object] = study.config.model_dump(mode="json")[section]
    return found


def same_or_not(what: str, one: Mapping[str, object], two: Mapping[str, object]) -> Facet | None:
    """What differs between settings; None where nothing does."""
    differing = differences(one, two)
    return Facet(what=what, same=False, text="; ".join(differing)) if differing else None


def differences(one: Mapping[str, object], two: Mapping[str, object]) -> list[str]:
    """``epochs 3 and 1`` for every field that differs."""
    names = dict.fromkeys([*one, *two])
    return [
        f"{name.replace('_', ' ')} {one.get(name)} and {two.get(name)}"
        for name in names
        if one.get(name) != two.get(name)
    ]


def training_facet(first: StudyRecords, second: StudyRecords) -> Facet:
    """Whether trials of one arm and seed are the same trial: an id covers all that training is
    made of (base and how it runs, rows as encoded, protocol, method, seed, version of the training
    code)."""
    what = "trials of arms in both"
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
        "base, how the base runs, training rows, protocol or the version of the training code"
    )
    return Facet(what=what, same=False, text=text)


def versions_facet(first: StudyRecords, second: StudyRecords) -> Facet:
    """Libraries and device, which move the last digits."""
    one, two = (
        {"rankscope": s.provenance.rankscope, "device": s.model.device, **s.provenance.libraries}
        for s in (first, second)
    )
    return same_or_not("versions and device", one, two) or Facet(
        what="versions and device",
        same=True,
        text=f"rankscope {one['rankscope']} on {one['device']}, the same libraries",
    )
