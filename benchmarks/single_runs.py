"""The peers: one trial after another with PEFT, by a plain loop, a hand-tuned one and TRL.

All start from the same A and B as Rankscope's adapters and see the same rows in the same order.
"""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    PreTrainedModel,
    TrainerCallback,
)

from race import Segment, Turn
from rankscope.data.encode import EncodedRow
from rankscope.models.init_context import new_adapter
from rankscope.models.lora import Adapter
from rankscope.records import TrialSpec
from rankscope.train.step_schedule import learning_rate
from training import Rows, Setting, StepClock, Trained

ROW_BY_ROW = "row_by_row"
"""Name of the attention that ``concatenated`` needs."""

SummedLoss = Callable[[PeftModel, Sequence[EncodedRow]], Tensor]
"""Sum of the cross-entropy over the labels of some rows, in one forward pass."""


# --- forward passes ------------------------------------------------------------------------------


def padded(rows: Sequence[EncodedRow]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and labels (-100: none), each (rows, longest), padded on the right."""
    width = max(len(row.input_ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    labels = torch.full((len(rows), width), -100)
    for i, row in enumerate(rows):
        length = len(row.input_ids)
        ids[i, :length] = torch.tensor(row.input_ids)
        mask[i, :length] = 1
        labels[i, :length] = torch.where(torch.tensor(row.is_label), ids[i, :length], -100)
    return ids, mask, labels


def bare(model: PeftModel) -> Any:
    """The model that PEFT has put its layers into."""
    return model.get_base_model()


def plain(model: PeftModel, rows: Sequence[EncodedRow]) -> Tensor:
    """The loop people write: padded rows with their mask, logits everywhere."""
    ids, mask, labels = (tensor.to(model.device) for tensor in padded(rows))
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    flat = logits.reshape(-1, logits.shape[-1]).float()
    return F.cross_entropy(flat, labels[:, 1:].reshape(-1), reduction="sum")


def at_labels(model: PeftModel, hidden: Tensor, labels: Tensor) -> Tensor:
    """Summed loss of (rows, T, width) hidden states: the output layer sees labeled places alone.

    ``labels`` (rows, T) says for each token itself whether it is one.
    """
    head = bare(model).get_output_embeddings()
    following = labels[:, 1:]
    marked = following != -100
    logits = head(hidden[:, :-1][marked])
    return F.cross_entropy(logits.float(), following[marked], reduction="sum")


def padded_at_labels(model: PeftModel, rows: Sequence[EncodedRow]) -> Tensor:
    """Padded rows without a mask: causality hides what stands to the right of a row."""
    ids, _, labels = (tensor.to(model.device) for tensor in padded(rows))
    decoder = bare(model).get_decoder()
    hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state
    return at_labels(model, hidden, labels)


def concatenated(model: PeftModel, rows: Sequence[EncodedRow]) -> Tensor:
    """Rows one after another, (1, N), nothing padded; attention goes row by row."""
    lengths = [len(row.input_ids) for row in rows]
    ids = torch.tensor([[i for row in rows for i in row.input_ids]])
    marks = torch.tensor([[mark for row in rows for mark in row.is_label]])
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    # A row's first token is never a label, so no row predicts the next one's.
    labels = torch.where(marks, ids, -100)
    ids, positions, labels = (t.to(model.device) for t in (ids, positions, labels))
    decoder = bare(model).get_decoder()
    hidden = decoder(
        input_ids=ids, position_ids=positions, use_cache=False, row_lengths=lengths
    ).last_hidden_state
    return at_labels(model, hidden, labels)


def row_by_row(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    row_lengths: Sequence[int] = (),
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """(1, heads, N, D) -> (1, N, heads, D): the stock causal attention on each row."""
    outs = [
        F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        for q, k, v in zip(*(x.split(row_lengths, 2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(outs, 2).transpose(1, 2), None


# --- loops ---------------------------------------------------------------------------------------


class Loop(NamedTuple):
    """A way to train one trial.

    Attributes:
        autocast: adapters' products in the base's dtype; PEFT's own are in float32.
        is_joined: the micro-batches of an optimizer step go through the model in one pass.
    """

    loss: SummedLoss
    autocast: bool = False
    is_joined: bool = False

    def label(self) -> str:
        """Name for tables."""
        words = [self.loss.__name__.replace("_", " ")]
        words += ["autocast"] * self.autocast + ["joined micro-batches"] * self.is_joined
        return ", ".join(words)

    def precision(self, model: PeftModel) -> AbstractContextManager[object]:
        """Autocast where asked for, without PEFT's copies of its inputs in float32."""
        if not self.autocast:
            return nullcontext()
        stack = ExitStack()
        stack.enter_context(disable_input_dtype_casting(model))
        stack.enter_context(torch.autocast(model.device.type, torch.bfloat16))
        return stack


def with_start(model: PreTrainedModel, spec: TrialSpec) -> PeftModel:
    """The model in PEFT's LoRA, with the A and B that Rankscope starts the same trial from."""
    start = new_adapter(model, spec)
    wrapped = get_peft_model(model, peft_config(spec))
    copy_start(wrapped, start)
    return wrapped


def peft_config(spec: TrialSpec) -> LoraConfig:
    """The trial as PEFT says it."""
    assert spec.rank is not None
    assert spec.alpha is not None
    return LoraConfig(
        r=spec.rank,
        lora_alpha=int(spec.alpha),
        target_modules=list(spec.targets),
        lora_dropout=spec.dropout,
        task_type="CAUSAL_LM",
    )


@torch.no_grad()
def copy_start(model: nn.Module, start: Adapter) -> None:
    """Set PEFT's A and B, float32, in place."""
    weights = dict(model.named_parameters())
    for name in start.a:
        for letter, source in (("A", start.a[name]), ("B", start.b[name])):
            weights[f"base_model.model.{name}.lora_{letter}.default.weight"].copy_(source)


def train_alone(
    model: PreTrainedModel, spec: TrialSpec, rows: Rows, loop: Loop, trained: Trained
) -> None:
    """Train one trial and count it; the model comes out as it was."""
    wrapped = with_start(model, spec)
    wrapped.train()
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=spec.lr, weight_decay=0.0, fused=True)
    losses: list[Tensor] = []
    clock = StepClock(model.device)
    protocol = rows.setting.protocol()
    for step, micros in enumerate(rows.order(spec)):
        if loop.is_joined:
            micros = [[i for micro in micros for i in micro]]
        batches = [[rows.encoded[i] for i in micro] for micro in micros]
        num_labels = sum(sum(row.is_label) for batch in batches for row in batch)
        total = torch.zeros((), device=model.device)
        for batch in batches:
            with loop.precision(wrapped):
                loss = loop.loss(wrapped, batch) / num_labels
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(parameters, protocol.max_grad_norm)
        optimizer.param_groups[0]["lr"] = learning_rate(
            spec.lr, step, rows.setting.steps, protocol.schedule, protocol.warmup_fraction
        )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
        clock.step_done()
    trained.add(spec, rows, [float(loss) for loss in losses], clock)
    wrapped.unload()


def load(setting: Setting, attention: str = "sdpa") -> PreTrainedModel:
    """The base as transformers loads it."""
    AttentionInterface.register(ROW_BY_ROW, row_by_row)
    model: Any = AutoModelForCausalLM.from_pretrained(
        setting.model,
        dtype=setting.torch_dtype(),
        attn_implementation=attention,
        local_files_only=True,
    )
    on_device: PreTrainedModel = model.to(setting.torch_device())
    return on_device


def plain_loop(rows: Rows) -> Turn:
    """One trial after another by the loop people write."""
    return by(Loop(plain), rows)


def hand_tuned(rows: Rows) -> Turn:
    """One trial after another by the fastest of a few loops an expert would try.

    Each is tried on the middle trial. The protocol's micro-batches are kept.
    """
    is_low = rows.setting.torch_dtype() == torch.bfloat16
    precisions = (False, True) if is_low else (False,)
    return by(
        fastest(
            [Loop(loss, cast) for loss in (padded_at_labels, concatenated) for cast in precisions],
            rows,
        ),
        rows,
    )


def hand_tuned_joined(rows: Rows) -> Turn:
    """A step's micro-batches go in one pass, as an expert with memory to spare has them."""
    cast = rows.setting.torch_dtype() == torch.bfloat16
    loops = [Loop(loss, cast, is_joined=True) for loss in (padded_at_labels, concatenated)]
    return by(fastest(loops, rows), rows)


def by(loop: Loop, rows: Rows) -> Turn:
    """One trial after another by a loop."""
    model = load(rows.setting, attention_of(loop))

    def turn() -> Segment:
        trained = Trained()
        for spec in rows.setting.specs():
            train_alone(model, spec, rows, loop, trained)
        return trained.segment()

    return turn


def fastest(loops: Sequence[Loop], rows: Rows) -> Loop:
    """The loop that trains the middle trial fastest, the second time."""
    rates = {}
    for loop in loops:
        model, spec = load(rows.setting, attention_of(loop)), rows.setting.middle()
        for _ in range(2):
            trained = Trained()
            train_alone(model, spec, rows, loop, trained)
        rates[loop] = trained.rates[spec.trial_id]
        print(f"{loop.label()}: {rates[loop]:.0f} tokens/s", file=sys.stderr)
    return max(loops, key=rates.__getitem__)


def attention_of(loop: Loop) -> str:
    """The attention implementation a loop needs."""
    return ROW_BY_ROW if loop.loss is concatenated else "sdpa"


# --- TRL -----------------------------------------------------------------------------------------


class TrainerClock(TrainerCallback):
    """Marks the end of every optimizer step of transformers' Trainer."""

    clock: StepClock

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """The first step begins."""
        self.clock = StepClock(self.device)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """An optimizer step is over."""
        self.clock.step_done()


def trl(rows: Rows) -> Turn:
    """TRL's SFTTrainer as its documentation shows it, one run per trial."""
    return sft(rows, {})


def trl_without_recomputation(rows: Rows) -> Turn:
    """TRL's SFTTrainer with its default gradient checkpointing off."""
    return sft(rows, {"gradient_checkpointing": False})


def sft(rows: Rows, changes: Mapping[str, Any]) -> Turn:
    """One SFTTrainer for each trial."""
    model = load(rows.setting)

    def turn() -> Segment:
        trained = Trained()
        for spec in rows.setting.specs():
            start = None if spec.is_full else new_adapter(model, spec)
            trl_run(start, spec, rows, changes, trained)
        return trained.segment()

    return turn


def trl_run(
    start: Adapter | None, spec: TrialSpec, rows: Rows, changes: Mapping[str, Any], trained: Trained
) -> None:
    """One SFTTrainer on the rows in the trial's order; prompt and completion are text columns.

    ``start`` is None for full fine-tuning.

    But for ``changes`` everything stands at TRL's default that the race does not fix:
    completion-only loss, no packing, padding to the longest row of the micro-batch, gradient
    checkpointing, clipping at 1, AdamW without decay.
    """
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    setting = rows.setting
    order = [i for micros in rows.order(spec) for micro in micros for i in micro]
    columns = {
        "prompt": [rows.prompts[i] for i in order],
        "completion": [rows.completions[i] for i in order],
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = SFTTrainer(
            model=setting.model,
            args=SFTConfig(**trl_settings(spec, rows, folder), **changes),
            train_dataset=Dataset.from_dict(columns),
            peft_config=None if start is None else peft_config(spec),
        )
        check_rows(trainer.train_dataset, [rows.encoded[i] for i in order])
        if start is not None:
            copy_start(trainer.model, start)
        step_losses = watch_losses(trainer, setting.gradient_accumulation)
        clock = TrainerClock(setting.torch_device())
        trainer.add_callback(clock)
        trainer.train()
    trained.add(spec, rows, step_losses(), clock.clock)


def trl_settings(spec: TrialSpec, rows: Rows, folder: str) -> dict[str, Any]:
    """Arguments of a TRL trainer that the race fixes."""
    setting, protocol = rows.setting, rows.setting.protocol()
    return {
        "output_dir": folder,
        "per_device_train_batch_size": setting.batch_size,
        "gradient_accumulation_steps": setting.gradient_accumulation,
        "max_steps": setting.steps,
        "max_length": setting.max_length,
        "learning_rate": spec.lr,
        "lr_scheduler_type": protocol.schedule,
        "warmup_steps": protocol.warmup_fraction,
        "train_sampling_strategy": "sequential",
        "bf16": setting.torch_dtype() == torch.bfloat16,
        "model_init_kwargs": {"dtype": str(setting.torch_dtype()).removeprefix("torch.")},
        "use_cpu": setting.torch_device().type == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def check_rows(prepared: Any, expected: Sequence[EncodedRow]) -> None:
    """Raise ValueError where TRL's tokens or labels are not those of the other sides."""
    found = [(tuple(row["input_ids"]), tuple(i != -100 for i in row["labels"])) for row in prepared]
    if found != [(row.input_ids, row.is_label) for row in expected]:
        raise ValueError("TRL prepared other tokens or labels than Rankscope: nothing to compare")


def watch_losses(trainer: Any, gradient_accumulation: int) -> Callable[[], list[float]]:
    """The loss of every optimizer step, before the Trainer rounds or averages it for its log."""
    losses: list[Tensor] = []
    training_step = trainer.training_step

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = training_step(*args, **kwargs)
        losses.append(loss.detach())
        return loss

    trainer.training_step = watched

    def of_steps() -> list[float]:
        steps = range(0, len(losses), gradient_accumulation)
        return [float(sum(losses[i : i + gradient_accumulation])) for i in steps]

    return of_steps
