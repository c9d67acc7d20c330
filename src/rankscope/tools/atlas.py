"""``rankscope atlas``: the answers of many studies on one page that opens offline.

Every figure on it is either expected (by the posterior of its study: net gains, retention changes,
probabilities) or measured (test scores), and its heading says so.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rankscope.advise.recommend import recommend
from rankscope.errors import IntegrityError, UserError
from rankscope.formatting import (
    MAX_NAME,
    compact,
    count,
    duration,
    number,
    safe_text,
    signed,
)
from rankscope.records import ArmSummary, Provenance, StudyRecords
from rankscope.report.page import embedded, plain, render_page
from rankscope.report.study_view import StudyView
from rankscope.report.tables import arm_row
from rankscope.store import OUTPUT_FILES, Ledger
from rankscope.tools.kept_records import ABOUT, kept_study

AtlasRow = dict[str, Any]
"""An answer of a study; :func:`read_atlas` says what it holds."""


def read_atlas(places: Sequence[Path], page: Path) -> list[AtlasRow]:
    """One row for each training task of each study, or one for a study without any.

    Shares of 1 and nats as in ``rankscope.load(DIR).arms``; ``expected_`` names the posterior's
    figures, and ``text`` of a row is how the page shows them. ``curve`` has the expected net gains
    by rank, in the unit that people read. No figure of an item is kept.

    Args:
        places: folders of studies, or of records that ``keep_records`` wrote.
        page: where the page will be; links to the studies' pages start at its folder.

    Raises:
        UserError: all folders that cannot be used, with the reason of each.
    """
    rows, faults, seen = list[AtlasRow](), list[UserError | IntegrityError](), set[Path]()
    for place in places:
        try:
            if place.resolve() in seen:
                raise UserError(place, "the same folder again", "each one once")
            seen.add(place.resolve())
            is_kept = (place / ABOUT).is_file()
            study = kept_study(place) if is_kept else Ledger.read(place, with_analyses=False)
            rows += _rows(study, {"folder": str(place), "page": _link(place, page)})
        except (UserError, IntegrityError) as fault:
            faults.append(fault)
    if faults:
        found = f"{count(len(faults), 'folder')} of {len(places)} that cannot be used"
        expected, do = "studies or their records", "leave these out, or restore them"
        raise UserError("atlas", found, expected, do, faults)
    keys = ("model", "task", "study")
    return sorted(rows, key=lambda row: (not row["arm"], *(str(row[key]) for key in keys)))


def _link(place: Path, page: Path) -> str | None:
    report = place.resolve() / OUTPUT_FILES[1]
    if not report.is_file():
        return None
    return quote(Path(os.path.relpath(report, page.resolve().parent)).as_posix())


def _rows(study: StudyRecords, about: AtlasRow) -> list[AtlasRow]:
    view, model = StudyView(study, recommend(study)), study.model
    quantized = "" if model.quantize == "none" else f", {model.quantize}"
    about |= {"study": study.name, "model": model.label + quantized, "model_sha256": model.sha256}
    if view.training_tasks:
        return [about | _answer(view, task) for task in view.training_tasks]
    verdict = "It has no training task, so there is no answer."
    trials = {"trials": len(study.trials), "done": len(study.trials), "methods": []}
    return [about | trials | {"task": None, "arm": None, "verdict": verdict, "curve": None}]


def _answer(view: StudyView, task: str) -> AtlasRow:
    advice, arm, base = view.advice(task), view.focus(task), view.base(task)
    trials = [trial for trial in view.study.trials if trial.spec.task == task]
    # The slices of a nested run share one training.
    trained = {t.spec.nest: t.train for t in trials if t.train}.values()
    best, shown = view.best_lora(task), {} if arm is None else arm_row(view, arm)
    tokens, seconds = (sum(getattr(t, n) for t in trained) for n in ("num_tokens", "seconds"))
    row: AtlasRow = shown | {
        "task": task,
        "arm": None if arm is None else arm.label,
        "decision": advice.decision,
        "confidence": advice.confidence,
        "verdict": advice.verdict,
        # With every arm over the limit, P is of exceeding it.
        "p_within_margin": advice.p_within_margin if view.candidates(task) else None,
        "best_rank": best and best.rank,
        "base_score": base and base.score,
        "methods": sorted({trial.spec.method for trial in trials}),
        "trials": len(trials),
        "done": sum(trial.status == "done" for trial in trials),
        "tokens_trained": tokens,
        "seconds_trained": seconds,
        "curve": _curve(view, task),
    }
    if arm is None:
        return row
    unit = view.unit(task)
    scores = [None if s is None else unit.scale * s for s in (row["base_score"], row["score"])]
    row["text"] = {
        name: (
            signed(of.value, unit),
            f"{signed(of.low, unit)} to {signed(of.high, unit)} {unit.difference}",
        )
        for name, (of, unit) in view.expected(arm).items()
        if of is not None
    } | {
        "score": (
            " \N{RIGHTWARDS ARROW} ".join(number(s, unit.digits) for s in scores),
            unit.score,
        ),
        "trained": (f"{compact(tokens)} tokens", duration(seconds)) if tokens else ("", ""),
    }
    return row


def _curve(view: StudyView, task: str) -> AtlasRow | None:
    """Expected net gains of each rank at its best rate: a line for each configuration, and full
    fine-tuning. None if there is no line.

    A point is (rank, net gain, low, high, P, label).
    """
    unit, candidates = view.net_unit(task), view.candidates(task)

    def point(arm: ArmSummary) -> list[object]:
        of = arm.expected
        assert of is not None
        gains = [end * unit.scale for end in (of.net.value, of.net.low, of.net.high)]
        return [arm.rank, *gains, of.p_within_margin, safe_text(arm.label, MAX_NAME)]

    lines = [
        {
            "name": safe_text(name or arms[0].method, MAX_NAME),
            "method": arms[0].method,
            "points": [point(arm) for arm in arms if arm.expected and arm in candidates],
        }
        for name, of in view.variants(task).items()
        for arms in [sorted(of, key=lambda arm: arm.rank or 0)]
    ]
    lines = [line for line in lines if line["points"]]
    full = view.best_full(task)
    reference = point(full) if full and full.expected else None
    return {"unit": unit.difference, "lines": lines, "full": reference} if lines else None


def render_atlas(rows: Sequence[AtlasRow], provenance: Provenance) -> str:
    names = ("model", "task", "study", "arm", "model_sha256")
    curves = [
        {name: safe_text(row[name], MAX_NAME) for name in names}
        | {"row": place, "isAnswer": row["decision"] in ("use", "use_full"), **curve}
        for place, row in enumerate(rows)
        if (curve := row["curve"])
    ]
    choices = {n: sorted({str(row[n]) for row in rows if row[n]}) for n in names[:2]}
    return render_page(
        "atlas.html.j2",
        (),
        (),
        provenance,
        rows=rows,
        studies=len({row["folder"] for row in rows}),
        answers=sum(row["arm"] is not None for row in rows),
        choices=choices | {"method": sorted({m for row in rows for m in row["methods"]})},
        curves=embedded(plain(curves)),
    )
