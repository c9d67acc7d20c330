"""Scores of a trained adapter truncated to smaller ranks, without training at them."""

from collections.abc import Sequence
from dataclasses import replace

from rankscope.evaluate.evaluator import evaluate_task
from rankscope.models.adapters.folder import load_adapter
from rankscope.models.base import Base
from rankscope.models.lora import Adapter
from rankscope.models.low_rank_update import LowRankUpdate, to_float64
from rankscope.models.scaling import frozen_parameter
from rankscope.records import Split, TrialRecords
from rankscope.run.prepared import PreparedStudy
from rankscope.store import Ledger, adapter_path


def truncated_adapter(adapter: Adapter, rank: int, adapter_name: str) -> Adapter:
    """A LoRA adapter truncated to ``rank`` with the least error in B A, ready to score."""
    parts = {
        name: LowRankUpdate(to_float64(a), to_float64(adapter.b[name])).truncated(rank)
        for name, a in adapter.a.items()
    }
    a = {name: frozen_parameter(part.A, part.A.device) for name, part in parts.items()}
    b = {name: frozen_parameter(part.B, part.B.device) for name, part in parts.items()}
    return replace(adapter, name=adapter_name, rank=rank, a=a, b=b)


def screen(
    inputs: PreparedStudy,
    ledger: Ledger,
    base: Base,
    trials: Sequence[TrialRecords],
    ranks: Sequence[int],
) -> dict[tuple[int, str, Split], list[float]]:
    """Scores of trained adapters truncated to each rank: (rank, task, split) -> one per trial.

    ``trials`` are the seeds of one arm, scored on its training task and the retention tasks.
    """
    task = trials[0].spec.task
    names = [task, *(t.name for t in inputs.config.evaluate.retention if t.name != task)]
    scores: dict[tuple[int, str, Split], list[float]] = {}
    for trial in trials:
        folder = ledger.checked_path(adapter_path(trial.spec.trial_id))
        adapter = load_adapter(folder, trial.spec.trial_id, base.record).to(base.device)
        adapter_names: dict[str | None, str] = {}
        try:
            for rank in ranks:
                truncated = truncated_adapter(adapter, rank, f"truncated to {rank}")
                base.multi_lora.attach(truncated)
                adapter_names[truncated.name] = truncated.name
            for name in names:
                for split in ("validation", "test"):
                    records = evaluate_task(
                        base,
                        inputs.encoder,
                        inputs.tasks[name],
                        split,
                        adapter_names,
                        inputs.config.evaluate,
                    )
                    for rank, adapter_name in zip(ranks, adapter_names, strict=True):
                        key: tuple[int, str, Split] = (rank, name, split)
                        scores.setdefault(key, []).append(records[adapter_name][0].score)
        finally:
            base.multi_lora.clear()
    return scores
