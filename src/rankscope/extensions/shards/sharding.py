"""One model on several devices: every process holds its part of each weight (torch's FSDP2).

Shard 0 announces the work that needs all of them: forward passes, the gathering of weights, and the
spectra of full fine-tuning. If memory allows, frozen models are *replicated*: whole on every shard,
so that only gradients are exchanged.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rankscope.models.attention import varlen
from rankscope.models.base import Base
from rankscope.models.load import check_rows_apart, load_model, pass_one_token
from rankscope.models.multi_lora import MultiLora
from rankscope.models.output_layer import block_output_layer, note_plain_logits
from rankscope.models.parameters import read_model_config
from rankscope.models.sharding import Shards, cut_like, is_sharded, local, whole

_P = ParamSpec("_P")
_T = TypeVar("_T")


class ManyShards(Shards):
    """The shards that hold models together, as one of them sees them."""

    def __init__(self, index: int, size: int, device: torch.device, orders: Any = None) -> None:
        self.index, self.size, self.device = index, size, device
        self.orders = orders  # Process group for announcements of shard 0
        self.handlers: dict[str, Callable[..., object]] = {}  # For other shards
        self.models: dict[str, Base] = {}  # By name, the same on all shards
        self.is_in_step = False  # All shards run the same code: shard 0 announces nothing

    def hold(
        self, name: str, model: PreTrainedModel | None, tokenizer: Any, record: Any, folder: Path
    ) -> Base:
        """Make a frozen model that all shards hold together under ``name``, or each of them whole.

        Shard 0 calls this with the model. The other shards call it without, as the handler of shard
        0's announcement, and without the tokenizer.
        """
        self.announce("shard", self.replicates, name, record, folder)
        self.release(name)  # before there is another one
        parts = frozen_shards(read_model_config(folder), getattr(torch, record.dtype), self, model)
        if self.replicates:
            block_output_layer(parts)
        base = Base(parts, tokenizer, record, folder, MultiLora(parts), self, name)
        self.models[name] = base
        index_of = {id(p): i for i, p in enumerate(parts.parameters())}
        for linear in base.linears().values():  # for ``quantize.dense_weight``
            gather = partial(self.gather, name, index_of[id(linear.weight)])
            linear.gather_weight = gather  # type: ignore[assignment]
        # A first pass under inference_mode would make tensors that no later training pass may use.
        with torch.no_grad(), self.in_step():
            pass_one_token(base)
            note_plain_logits(parts, partial(pass_one_token, base))
        if self.index == 0:
            check_rows_apart(base)
        return base

    def release(self, name: str) -> None:
        self.models.pop(name, None)

    def trainable_copy(self, base: Base) -> Base:
        name = "trained"
        self.release(name)  # before there is another one
        parts, rest = trainable_shards(base.model, self), (base.record, base.folder)
        made = Base(parts, base.tokenizer, *rest, MultiLora(parts), self, name)
        self.models[name] = made
        return made

    def gathered(self, base: Base) -> PreTrainedModel:
        model = load_model(base.folder, torch.float32)
        with torch.no_grad():
            for i, parameter in enumerate(model.parameters()):
                parameter.copy_(self.gather(base.name, i))
        return model

    @contextmanager
    def in_step(self, value: bool = True) -> Iterator[None]:
        before, self.is_in_step = self.is_in_step, value
        try:
            yield
        finally:
            self.is_in_step = before

    def alone(self, function: Callable[_P, None]) -> Callable[_P, None]:
        def call(*args: _P.args, **kwargs: _P.kwargs) -> None:
            with self.in_step(False):
                function(*args, **kwargs)

        return call

    def announce(self, name: str, *args: object) -> None:
        if self.index == 0 and not self.is_in_step:
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
        def decision() -> bool:
            if self.index:
                return bool(self.serve("agree")[0])
            value = decide()
            self.alone(self.announce)("agree", value)
            return value

        return decision

    def own(self, passes: Sequence[_T], idle: _T | None) -> Iterator[tuple[_T, float]]:
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
        dist.barrier(group=self.orders)

    def collect(self, value: _T) -> list[_T]:
        values = [value] * self.size
        dist.all_gather_object(values, value, group=self.orders)
        return values

    def add_up(self, tensor: Tensor) -> None:
        dist.all_reduce(tensor)

    def add_up_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        replicated = [p for p in parameters if not is_sharded(p)]
        if not replicated:
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


# --- sharded models


def frozen_shards(
    config: PretrainedConfig, dtype: torch.dtype, shards: ManyShards, source: PreTrainedModel | None
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


def trainable_shards(frozen: PreTrainedModel, shards: ManyShards) -> PreTrainedModel:
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
    config: PretrainedConfig, dtype: torch.dtype, shards: ManyShards, trained_in: torch.dtype | None
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
