"""Does a high rank change a model in the directions in which full fine-tuning does?

    python evidence/update_overlap.py STUDY_FOLDER

reads the stored weights of a finished study and prints, of every arm, how much of the span of the
leading singular vectors of its updates is in that of full fine-tuning's: mean over matrices, left
and right vectors, and pairs of a seed of each. Two seeds of full fine-tuning are the ceiling.
"unrelated" is for eight vectors; between seeds of a rank r below eight it is r / 8 of that.
"""

import sys
from collections.abc import Iterable
from itertools import combinations, product
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

import rankscope
from rankscope.advise.recommend import recommend
from rankscope.extensions.spectra.stored_models import StoredTunedModel, matrices_to_compare
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.low_rank_update import LowRankUpdate
from rankscope.models.model_folder import model_folder
from rankscope.report.study_view import StudyView
from rankscope.store import weights_path

K = 8  # Leading vectors of each update
Span = tuple[Tensor, Tensor]
"""Left and right singular vectors, (m, k) and (n, k)."""


def leading(update: LowRankUpdate, k: int = K) -> Span:
    """Leading left (m, k) and right (n, k) singular vectors of dW; fewer if its rank is lower."""
    if update.gain is not None:
        update = LowRankUpdate.from_dense(update.dense())
    cut = update.truncated(k)
    left, r = torch.linalg.qr(cut.B)
    right, s = torch.linalg.qr(cut.A.mT)
    u, values, vh = torch.linalg.svd(r @ s.mT)
    kept = values > 1e-9 * values.max()
    return (left @ u)[:, kept], (right @ vh.mT)[:, kept]


def overlap(one: Tensor, other: Tensor) -> float:
    """|U1^T U2|_F^2 over the smaller number of vectors: 1 if one span holds the other; unrelated
    spans of k and l in m dimensions have max(k, l) / m."""
    return float((one.mT @ other).square().sum()) / min(one.shape[1], other.shape[1])


def overlaps(pairs: Iterable[tuple[Span, Span]]) -> list[float]:
    """Left and right, of every pair."""
    return [overlap(*sides) for one, other in pairs for sides in zip(one, other, strict=True)]


def table(folder: Path) -> list[dict[str, object]]:
    """Rows by arm: rank, learning rate, overlap with full fine-tuning and between its seeds, and
    the overlap of unrelated spans."""
    study = rankscope.load(folder).records
    view = StudyView(study, recommend(study))
    (task,) = view.training_tasks
    full, arms = view.best_full(task), view.arms(task)
    if full is None:
        raise SystemExit(f"{folder}: no arm of full fine-tuning")
    base = CheckpointReader(model_folder(study.config.model))
    opened = {
        arm.label: [
            StoredTunedModel.open(folder / weights_path(t.spec), t.spec.trial_id)
            for t in view.trials(arm)
            if (folder / weights_path(t.spec)).exists()
        ]
        for arm in arms
    }
    with_full: dict[str, list[float]] = {name: [] for name in opened}
    between: dict[str, list[float]] = {name: [] for name in opened}
    chance = []
    compared = matrices_to_compare(base, [model for models in opened.values() for model in models])
    for name, changed in compared.items():
        weight = base.weight(name)
        spans = {
            label: [leading(m.update(name, weight)) for m in models if m in changed]
            for label, models in opened.items()
        }
        for label, of_arm in spans.items():
            between[label] += overlaps(combinations(of_arm, 2))
            if label != full.label:
                with_full[label] += overlaps(product(of_arm, spans[full.label]))
        chance += [K / size for size in weight.shape]
    return [
        {
            "arm": arm.label,
            "rank": arm.rank,
            "lr": arm.lr,
            "seeds": len(opened[arm.label]),
            "with_full": fmean(with_full[arm.label]) if with_full[arm.label] else None,
            "between_seeds": fmean(between[arm.label]) if between[arm.label] else None,
            "unrelated": fmean(chance),
        }
        for arm in arms
        if opened[arm.label]
    ]


def lines(rows: list[dict[str, object]]) -> list[str]:
    """The table in Markdown."""

    def cell(value: object) -> str:
        return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)

    shown = ["arm", "seeds", "with_full", "between_seeds", "unrelated"]
    titles = "| arm | seeds | with full fine-tuning | between its seeds | unrelated |"
    body = ["| " + " | ".join(cell(row[name]) for name in shown) + " |" for row in rows]
    return [titles, "|---" * len(shown) + "|", *body]


if __name__ == "__main__":
    print("\n".join(lines(table(Path(sys.argv[1])))))
