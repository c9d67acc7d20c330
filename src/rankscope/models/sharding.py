"""One model on several devices: every process holds its part of each weight (torch's FSDP2).

A *shard* is a process with a device of its own, and its part of a weight. Training runs on all
shards in step, each on its own rows. Everything else runs on shard 0 alone, which announces the
work that needs all of them: forward passes, the gathering of weights, and the spectra of full
fine-tuning. If memory allows, frozen models are *replicated*: whole on every shard, so that only
gradients are exchanged.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rankscope.analyses import enabled_analyses
from rankscope.config.study import StudyConfig
from rankscope.errors import UserError
from rankscope.models.attention import varlen
from rankscope.models.kernels import PLAIN
from rankscope.models.methods import all_methods, get_method
from rankscope.records import TrialSpec

if TYPE_CHECKING:
    from rankscope.models.base import Base

P = ParamSpec("P")
_T = TypeVar("_T")


@dataclass(slots=True)
class Shards:
    """The shards that hold models together, as one of them sees them; by default there is one."""

    index: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    orders: Any = None  # Process group for announcements of shard 0
    handlers: dict[str, Callable[..., object]] = field(default_factory=dict)  # For other shards
    models: "dict[str, Base]" = field(default_factory=dict)  # By name, the same on all shards
    replicates: bool = False  # Frozen models are whole on every shard
    is_in_step: bool = False  # All shards run the same code: shard 0 announces nothing
    break_off: Callable[[str], None] = lambda reason: None
    """Ends all shards at once, to begin again from stored results; does nothing if there is one."""

    @contextmanager
    def in_step(self, value: bool = True) -> Iterator[None]:
        """Run the same code on all shards inside; with False, on shard 0 alone."""
        before, self.is_in_step = self.is_in_step, value
        try:
            yield
        finally:
            self.is_in_step = before

    def alone(self, function: Callable[P, None]) -> Callable[P, None]:
        """Return the function for shard 0 alone, to be called amid code that all shards run in
        step."""

        def call(*args: P.args, **kwargs: P.kwargs) -> None:
            with self.in_step(False):
                function(*args, **kwargs)

        return call

    def announce(self, name: str, *args: object) -> None:
        """Let the other shards call their handler ``name`` with these arguments; called on shard
        0."""
        if self.size > 1 and self.index == 0 and not self.is_in_step:
            dist.broadcast_object_list([(name, args)], src=0, group=self.orders)

    def serve(self, until: str) -> Any:
        """Call handlers until shard 0 announces ``until``; return its arguments. Called on the
        others."""
        while True:
            announced: list[Any] = [None]
            dist.broadcast_object_list(announced, src=0, group=self.orders)
            name, args = announced[0]
            if name == until:
                return args
            self.handlers[name](*args)

    def agreed(self, decide: Callable[[], bool]) -> Callable[[], bool]:
        """Return the decision of shard 0 for all shards, which ask for it at the same points."""

        def decision() -> bool:
            if self.index:
                return bool(self.serve("agree")[0])
            value = decide()
            self.alone(self.announce)("agree", value)
            return value

        return decision

    def own(self, passes: Sequence[_T], idle: _T | None) -> Iterator[tuple[_T, float]]:
        """Yield the passes of this shard, with weight 1.

        If others have one more, ``idle`` follows with weight 0, unless it is None.
        """
        for own in passes[self.index :: self.size]:
            yield own, 1.0
        if idle is not None and 0 < len(passes) % self.size <= self.index:
            yield idle, 0.0

    def gather(self, name: str, index: int) -> Tensor:
        """Return a model's whole parameter, by its index in ``parameters()``."""
        parameter = [*self.models[name].model.parameters()][index].detach()
        if is_sharded(parameter):
            self.announce("gather", name, index)
        return whole(parameter)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self.orders)

    def collect(self, value: _T) -> list[_T]:
        """Return the values of all shards, in their order."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value, group=self.orders)
        return values

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all shards."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def add_up_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients of parameters that every shard holds whole by their sums."""
        replicated = [p for p in parameters if not is_sharded(p)]
        if self.size == 1 or not replicated:
            return
        for parameter in replicated:
            if parameter.grad is None:  # none of this shard's rows were the adapter's
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in replicated if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self.add_up(flat)
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view(gradient.shape))


# --- sharded tensors (DTensor, dimension 0), or plain ones on a single device


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """Return this shard's part."""
    shard: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return shard


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor; all shards have to call this."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return full


def cut_like(values: Tensor, like: Tensor) -> Tensor:
    """Shard a tensor that is whole on every shard like ``like``; return a sharded one as it is."""
    if is_sharded(values) or not is_sharded(like):
        return values
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(values, mesh, placements, src_data_rank=None)


def all_finite(parameters: Sequence[Tensor]) -> bool:
    """Whether all values are finite; all shards have to call this if they are sharded."""
    values = [whole(p.detach().norm()) if is_sharded(p) else p for p in parameters]
    return not values or bool(torch.stack([torch.isfinite(x).all() for x in values]).all())


# --- sharded models


def frozen_shards(
    config: PretrainedConfig, dtype: torch.dtype, shards: Shards, source: PreTrainedModel | None
) -> PreTrainedModel:
    """Make a frozen model from the weights in ``source``, which shard 0 has on the CPU.

    All shards have to call this.
    """
    if source is not None and shards.replicates:
        model: PreTrainedModel = source.eval()
        model.to(shards.device)  # type: ignore[arg-type]  # a wrapper without its own types
        model.requires_grad_(False)
    else:
        model = _empty_model(config, dtype, shards, None)
    for own, values in zip(*map(_parameters_and_buffers, (model, source or model)), strict=True):
        buffer = torch.empty(own.shape, dtype=own.dtype, device=shards.device)
        if source is not None:
            buffer.copy_(values.detach())
        dist.broadcast(buffer, src=0)
        local(own).copy_(local(cut_like(buffer, own)))
    return model


def trainable_shards(frozen: PreTrainedModel, shards: Shards) -> PreTrainedModel:
    """Return a sharded float32 copy of a frozen model, in which every parameter trains.

    Products and activations have the model's dtype. In bfloat16 this rounds more than the autocast
    of a model on one device, which would keep a copy of all weights on each.
    """
    model = _empty_model(frozen.config, torch.float32, shards, frozen.dtype)
    with torch.no_grad():
        for own, values in zip(*map(_parameters_and_buffers, (model, frozen)), strict=True):
            local(own).copy_(local(cut_like(values, own)))
    return model


def _parameters_and_buffers(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _empty_model(
    config: PretrainedConfig, dtype: torch.dtype, shards: Shards, trained_in: torch.dtype | None
) -> PreTrainedModel:
    """Make a model without values, sharded by decoder layer unless it is replicated.

    ``trained_in`` is the dtype of products of a model that trains. Gradients are added up over
    shards in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    varlen.register_attention()
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, attn_implementation=varlen.NAME, dtype=dtype
        )
    model.eval()
    model.requires_grad_(trained_in is not None)
    # Inputs are token ids and what layers return; a plan of the attention must stay as it is.
    policy = MixedPrecisionPolicy(trained_in, torch.float32, cast_forward_inputs=False)
    mesh = init_device_mesh(shards.device.type, (shards.size,))
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    is_whole = shards.replicates and trained_in is None
    for module in () if is_whole else (*layers, model):
        sharded = fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        # Losses are divided by the label tokens of all shards: their gradients are added up.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    model.to_empty(device=shards.device)
    model.tie_weights()  # which that undoes
    return model


def attach_gathering(base: "Base") -> None:
    """Let :func:`~rankscope.models.quantize.dense_weight` read the layers of a sharded model."""
    index_of = {id(p): i for i, p in enumerate(base.model.parameters())}
    for linear in base.linears().values():
        index = index_of[id(linear.weight)]
        linear.gather_weight = partial(base.shards.gather, base.name, index)  # type: ignore[assignment]


# --- what cannot be sharded


def check_devices(config: StudyConfig, trials: Sequence[TrialSpec], device: torch.device) -> None:
    """Raise UserError if ``train.devices`` asks for more than the code or this machine can do.

    The machine counts only if it trains itself: a cluster's login node does not.
    """
    wanted = config.train.devices
    if wanted == 1:
        return
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
