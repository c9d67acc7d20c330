"""A trial's adapter before its first step: from a seed, from shared results, or from disk."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from rankscope.data.encode import EncodedRow
from rankscope.data.sampler import RowSampler
from rankscope.errors import UserError
from rankscope.models.adapters.folder import adapter_sha256, load_adapter
from rankscope.models.base import Base
from rankscope.models.lora import Adapter
from rankscope.models.methods.lora import LoraMethod
from rankscope.models.multi_lora import target_linears
from rankscope.records import TrialSpec

T = TypeVar("T")


class InitContext:
    """Inputs of initialization besides a seed, computed once for the trials of a group.

    A trial's values do not depend on the other trials of its group.
    """

    def __init__(
        self,
        base: Base | None,
        rows: Mapping[TrialSpec, Sequence[EncodedRow]],
        trials: Sequence[TrialSpec],
    ) -> None:
        """``base`` is None if no training ``rows`` are given."""
        self.base, self.rows, self.trials = base, rows, trials
        self._shared: dict[tuple[object, ...], Any] = {}

    def shared(self, key: tuple[object, ...], compute: Callable[[], T]) -> T:
        if key not in self._shared:
            self._shared[key] = compute()
        value: T = self._shared[key]
        return value

    def rows_in_order(self, trial: TrialSpec) -> list[EncodedRow]:
        """Return the training rows in the order of the trial's first epoch."""
        rows = self.rows[trial]
        return [rows[i] for i in RowSampler(len(rows), 1, 1, trial.seed).epoch(0)]


def new_adapter(model: nn.Module, trial: TrialSpec, context: InitContext | None = None) -> Adapter:
    """Make a trial's adapter before its first step; with ``init_from``, read it from disk.

    A fresh adapter leaves the base's outputs unchanged, up to rounding. Without a ``context``
    nothing is shared, and a method that needs training rows cannot start.
    """
    adapter = empty_adapter(trial)
    linears = target_linears(model, trial.targets)
    if trial.init_from is not None:
        _continue_adapter(adapter, linears, trial, Path(trial.init_from))
    else:
        method = LoraMethod.of(trial.method)
        method.init_adapter(adapter, linears, trial, context or InitContext(None, {}, [trial]))
    return adapter


def empty_adapter(trial: TrialSpec) -> Adapter:
    if trial.rank is None or trial.alpha is None:
        raise ValueError(f"{trial.label}: not a LoRA trial")
    return Adapter(
        name=trial.trial_id,
        rank=trial.rank,
        alpha=trial.alpha,
        scaling=trial.scaling,
        targets=trial.targets,
        method=trial.method,
        ranks=dict(trial.rank_pattern or ()),
        dropout=trial.dropout,
        dropout_seed=trial.seed,
    )


def _continue_adapter(
    adapter: Adapter, linears: Mapping[str, nn.Linear], trial: TrialSpec, folder: Path
) -> None:
    """Fill an adapter from the one stored in ``folder``, each module at its own rank."""
    if adapter_sha256(folder) != trial.init_sha256:
        found = "a folder that changed while the study was running"
        expected = "the adapter that was read at its beginning"
        raise UserError(f"adapter {folder}", found, expected, "run the same command again")
    stored = load_adapter(folder, trial.trial_id)
    for name, linear in linears.items():
        device = linear.weight.device
        a, b = (x[name].detach().to(device) for x in (stored.a, stored.b))
        adapter.set_factors(name, a, b)
        if name in stored.magnitude:
            adapter.magnitude[name] = nn.Parameter(stored.magnitude[name].detach().to(device))
