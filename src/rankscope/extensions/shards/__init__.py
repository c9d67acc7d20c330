"""A base that several devices of one machine hold together, by ``train.devices``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from rankscope.analyses import enabled_analyses
from rankscope.errors import UserError
from rankscope.models.kernels import PLAIN
from rankscope.models.methods import all_methods, get_method
from rankscope.models.sharding import Sharding, Shards

if TYPE_CHECKING:
    import torch

    from rankscope.config.study import StudyConfig
    from rankscope.records import TrialSpec


class Fsdp(Sharding):
    """Every device has a part of each weight, or the whole frozen base."""

    name = "fsdp"

    def check(self, config: StudyConfig, trials: Sequence[TrialSpec], device: torch.device) -> None:
        """Refuse what works on one device only, and more devices than there are.

        The machine counts only if it trains itself: a cluster's login node does not.
        """
        import torch

        wanted = config.train.devices
        place = f"train.devices: {wanted}"
        found = torch.cuda.device_count() if device.type == "cuda" else 0
        if device.index is not None:
            raise UserError(place, f"'device: {device}'", "auto, cuda or cpu")
        if found < wanted and config.device != "cpu" and not config.runs_elsewhere:
            do = "use fewer, or 'device: cpu' to try it in as many processes"
            raise UserError(place, f"{found} GPUs", f"at least {wanted}", do)
        is_full = any(trial.is_full for trial in trials)
        refused = {
            "quantize": config.quantize != "none",
            f"kernels: {config.train.kernels}": config.train.kernels != PLAIN,
            "optimizer: adamw8bit": is_full and config.train.optimizer == "adamw8bit",
            "dropout": any(trial.dropout for trial in trials),
            "kl_to_base": any(trial.kl_to_base for trial in trials),
            "early_stop": any(trial.early_stop for trial in trials),
        }
        analyses = enabled_analyses(config)
        refused |= {a.needs_one_device(config, trials): True for a in analyses}
        methods = {trial.method for trial in trials}
        refused |= {f"method {m}": not get_method(m).can_be_sharded for m in sorted(methods)}
        what = next((what for what, is_refused in refused.items() if what and is_refused), None)
        if what is not None:
            names = ", ".join(sorted(m.name for m in all_methods() if m.can_be_sharded))
            found = f"{what}, which works on one device only; expected one of the methods {names} "
            raise UserError(place, f"{found}without it", do="remove it, or 'devices'")

    def started(self, size: int, device: torch.device) -> AbstractContextManager[Shards]:
        from rankscope.extensions.shards.processes import started_shards

        return started_shards(size, device)
