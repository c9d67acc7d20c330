"""A forgetting alarm for transformers' ``Trainer`` and the trainers of TRL.

The trainer's model is never run itself: its modules have hooks, dropout, adapters to switch and a
mode to restore. A second set of modules around the same weights in memory is run in its place, by
the engine that scores studies, and an adapter goes there the way that ``rankscope eval`` takes it.
"""

import copy
import inspect
import random
import re
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import ValidationError
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import CallbackHandler

from rankscope.advise.statistics.estimates import weighted_estimate
from rankscope.advise.statistics.matching import align_scores
from rankscope.config.loader import described, fault_at
from rankscope.config.section import dotted, short_repr
from rankscope.config.study import ModelConfig, StudyConfig
from rankscope.data.study_data import StudyData, prepare_data
from rankscope.data.task_source import missing_rows
from rankscope.errors import NotFiniteError, RankscopeError, UserError
from rankscope.evaluate.evaluator import Evaluation, evaluate_task
from rankscope.formatting import amount, difference, interval, unit_of
from rankscope.models.adapters.folder import check_adapter_fits, load_adapter
from rankscope.models.attention import varlen
from rankscope.models.base import Base
from rankscope.models.load import frozen_base, model_record
from rankscope.models.parameters import model_on_meta
from rankscope.models.quantize import is_quantized
from rankscope.models.study_base import peft_type
from rankscope.records import BASE, Estimate, ItemScores

_PLACE = "ForgettingCallback"
_TRAINED = "trained"
_WRAPPED = re.compile(r"\.(base_layer|original_module)(?=\.|$)")
"""Parts that PEFT adds to the path of a layer of the base."""


class ForgettingCallback(TrainerCallback):
    """Scores retention tasks during training, logs the change against the base, and warns or stops.

    The base is the model with its adapters off; in full fine-tuning, the model as training begins.
    Each task is scored on its test items as ``rankscope eval`` scores it, with products in the
    dtype of the weights. The log has ``forgetting/TASK/score``, ``change`` (minus the base) and the
    ends of its 95 % interval, ``low`` and ``high``, paired by items, in shares of 1 or nats per
    token; ``base`` once; and ``forgetting/seconds``, the time that scoring took.

    The rule: a task is over the limit if its interval is wholly below ``-max_loss``, or if the
    trained model's likelihoods are not finite. Then a warning is given, and training stops with
    ``at_limit="stop"``. A change below ``-max_loss`` whose interval reaches above it may be chance
    over the items: it warns, and never stops. The interval holds for one task at one step; of
    many, each without such a loss, about one in forty is over the limit by chance.

    Losses, gradients, random numbers and the trainer's model stay as they are without it.

    Args:
        tasks: named tasks, or tasks as in a study file.
        every: optimizer steps between two scorings; the end of training is scored, too.
        max_loss: largest accepted fall of a task's score, share of 1 or nats per token.
        data_dir: folder with ``<task>/test.jsonl`` for named tasks; None takes the hub.
        max_items: most items of a task; None takes all.
        at_limit: ``warn`` or ``stop``.

    Raises:
        UserError: an argument, a task or its rows cannot be used; or, as training begins, the model
            or its tokenizer.
    """

    def __init__(
        self,
        tasks: Sequence[str | Mapping[str, object]],
        *,
        every: int = 100,
        max_loss: float = 0.02,
        data_dir: str | Path | None = None,
        max_items: int | None = None,
        at_limit: Literal["warn", "stop"] = "warn",
    ) -> None:
        is_whole = isinstance(every, int) and not isinstance(every, bool)
        is_number = isinstance(max_loss, int | float) and not isinstance(max_loss, bool)
        checks: list[tuple[str, object, bool, str]] = [
            ("tasks", tasks, bool(tasks), "one or more"),
            ("every", every, is_whole and every >= 1, "a number of optimizer steps from 1"),
            ("max_loss", max_loss, is_number and 0 <= max_loss < 1,
             "0 or more and below 1: 0.02 is 2 points, or 0.02 nats per token"),
            ("at_limit", at_limit, at_limit in ("warn", "stop"), "'warn' or 'stop'"),
        ]  # fmt: skip
        faults = [UserError(w, short_repr(v), rule) for w, v, fits, rule in checks if not fits]
        values = {
            "name": _PLACE,
            "model": {"path": "the trainer's model"},
            "data_dir": None if data_dir is None else str(data_dir),
            "evaluate": {
                "cross_domain": tasks if isinstance(tasks, str) else [*tasks],
                "max_items": max_items,
            },
        }
        try:
            self.config = StudyConfig.model_validate(values)
            faults += {str(fault): fault for fault in missing_rows(self.config)}.values()
        except ValidationError as error:
            for fault in error.errors(include_url=False) if tasks else ():
                place = dotted(fault["loc"]).replace("evaluate.cross_domain", "tasks")
                place = place.removeprefix("evaluate.") or "tasks"
                faults.append(fault_at(described(fault, StudyConfig), place))
        if len(faults) == 1:
            raise faults[0]
        if faults:
            raise UserError(_PLACE, f"{len(faults)} faults", do="correct them", faults=faults)
        self.every, self.max_loss, self.at_limit = every, max_loss, at_limit
        self.data: StudyData
        self.base: dict[str, Evaluation] = {}
        self.scored_step = -1

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | PeftModel | None = None,
        processing_class: object = None,
        **kwargs: Any,
    ) -> None:
        """Score the base. Raises UserError: the model or its tokenizer cannot be used."""
        started = time.perf_counter()
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        if model is None or not isinstance(tokenizer, PreTrainedTokenizerBase):
            do = "give the trainer processing_class=tokenizer"
            raise UserError(_PLACE, "a trainer without a tokenizer", "the model's own", do)
        # A copy: encoding for scores changes the settings of the tokenizer's backend.
        self.data = prepare_data(self.config, copy.deepcopy(tokenizer))
        evaluations, failures = self._evaluate(model, trained=False)
        for task, reason in failures.items():
            raise NotFiniteError(
                f"{_PLACE}: {task}: the base", reason, "a model that can be scored"
            )
        for task, (record, _) in evaluations.items():
            if record.standard_error is None and record.n > 1:
                found = f"a score ({record.metric}) that is no mean of its items"
                raise UserError(f"task {task!r}", found, "a task whose items have scores")
        self.base, self.scored_step = evaluations, -1
        scores = {f"forgetting/{task}/base": e.score for task, (e, _) in evaluations.items()}
        self._log(args, state, control, scores, started)
        if state.global_step and not isinstance(model, PeftModel) and state.is_world_process_zero:
            found = f"the model of step {state.global_step} takes the place of the untouched base"
            text = f"{_PLACE}: training continues from a checkpoint, so {found}"
            warnings.warn(f"{text}; what was forgotten before is not counted", stacklevel=2)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | PeftModel | None = None,
        **kwargs: Any,
    ) -> None:
        """Score the model if it is time, and at the last step."""
        if state.global_step % self.every == 0 or control.should_training_stop:
            self._watch(args, state, control, model)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | PeftModel | None = None,
        **kwargs: Any,
    ) -> None:
        """Score the model unless its last step was, or the weights of the best one were loaded."""
        if state.global_step != self.scored_step or args.load_best_model_at_end:
            self._watch(args, state, control, model)

    def _watch(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any
    ) -> None:
        started, self.scored_step = time.perf_counter(), state.global_step
        evaluations, failures = self._evaluate(model, trained=True)
        values: dict[str, float] = {}
        alarms = {task: f"cannot be scored any more: {why}" for task, why in failures.items()}
        over = bool(alarms)
        for task, scored in evaluations.items():
            change = _change(scored, self.base[task])
            shown = {"score": scored[0].score, "change": change.value}
            shown |= {"low": change.low, "high": change.high}
            values |= {f"forgetting/{task}/{k}": v for k, v in shown.items() if v is not None}
            if change.value < -self.max_loss:
                alarms[task] = self._alarm(task, change)
                over |= change.is_below(-self.max_loss)
        self._log(args, state, control, values, started)
        if alarms and state.is_world_process_zero:
            lines = "".join(f"\n  {task}: {text}" for task, text in alarms.items())
            warnings.warn(f"{_PLACE}, step {state.global_step}:{lines}", stacklevel=2)
        if over and self.at_limit == "stop":
            control.should_training_stop = True

    def _alarm(self, task: str, change: Estimate) -> str:
        unit = unit_of(self.data.tasks[task].spec.score_unit)
        found = f"{difference(change.value, unit)} against the base, {interval(change, unit)}"
        limit = f"the limit of {amount(self.max_loss, unit)}"
        if change.is_below(-self.max_loss):
            return f"{found}: wholly beyond {limit}"
        return f"{found}: beyond {limit}, but it may be chance over the items"

    def _evaluate(
        self, model: PreTrainedModel | PeftModel, *, trained: bool
    ) -> tuple[dict[str, Evaluation], dict[str, str]]:
        """By task the evaluation of the model, or of its base; or why there is none."""
        names, encoder = self.data.tasks, self.data.encoder
        found: dict[str, Evaluation] = {}
        failures: dict[str, str] = {}
        parameters = (p for p in model.parameters() if p.requires_grad)
        if trained and not all(bool(p.isfinite().all()) for p in parameters):
            return {}, dict.fromkeys(names, "its weights are not finite")
        with _same_generators(model.device):
            base, adapter = live_base(model, encoder.tokenizer), None
            if isinstance(model, PeftModel):  # before training, too: it may have to be refused
                tuned, attached = _with_adapter(base, model)
                base, adapter = (tuned, attached) if trained else (base, None)
            models = {adapter: _TRAINED if trained else BASE}
            for name, task in names.items():
                settings = self.config.evaluate
                of_task, why = evaluate_task(base, encoder, task, "test", models, settings)
                if adapter in why:
                    failures[name] = why[adapter]
                else:
                    found[name] = of_task[adapter]
        return found, failures

    def _log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        values: Mapping[str, float],
        started: float,
    ) -> None:
        """Log as ``Trainer.log`` does: into the history, and to progress bar and trackers."""
        logs = {**values, "forgetting/seconds": time.perf_counter() - started}
        if state.epoch is not None:
            logs["epoch"] = state.epoch
        state.log_history.append({**logs, "step": state.global_step})
        # A copy: logging withdraws the request for the trainer's own log of this step.
        if (handler := _calling_handler()) is not None:
            handler.on_log(args, state, copy.copy(control), logs)


def _calling_handler() -> CallbackHandler | None:
    """The trackers and progress bar of the trainer that calls. A callback is given neither them nor
    its trainer, so the caller is looked for among the callers of this function."""
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(handler := frame.f_locals.get("self"), CallbackHandler):
            return handler
        frame = frame.f_back
    return None


def _change(scored: Evaluation, base: Evaluation) -> Estimate:
    tuned, reference = (
        ItemScores(
            item_ids=tuple(item.item_id for item in items),
            scores=np.array([item.score for item in items], dtype=np.float64),
            gold_logprobs=np.full(len(items), np.nan),
            subjects=tuple(item.subject for item in items),
        )
        for _, items in (scored, base)
    )
    pair = align_scores([tuned], [reference], trained=False)
    assert pair is not None  # a model without a finite score is no evaluation
    return weighted_estimate([pair], tested=False)


@contextmanager
def _same_generators(device: torch.device) -> Iterator[None]:
    """Afterwards all generators are as before: PEFT draws a start for an adapter that it loads."""
    states = random.getstate(), np.random.get_state()
    kind, devices = ("cuda", []) if device.type == "cpu" else (device.type, [device])
    try:
        with (
            torch.random.fork_rng(devices, device_type=kind),
            torch.autocast(device.type, enabled=False),
        ):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def live_base(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> Base:
    """The model without adapters, in modules of its own around the same weights in memory.

    Raises UserError for a model that the engine cannot run: no causal language model, weights that
    processes share among them, or adapters without :class:`PeftModel`.
    """
    live = model.get_base_model() if isinstance(model, PeftModel) else model
    if live is model and any(isinstance(m, BaseTunerLayer) for m in model.modules()):
        do = "make it with peft.get_peft_model, or give the trainer peft_config"
        raise UserError(_PLACE, "adapters inside a model that is no PeftModel", "a PeftModel", do)
    varlen.register_attention()
    config = copy.deepcopy(live.config)
    config._attn_implementation = varlen.NAME
    made = model_on_meta(config)
    # The layer inside a wrapper comes after it, and takes its place.
    sources = {_WRAPPED.sub("", name): module for name, module in live.named_modules()}
    for name, module in [*made.named_modules()]:
        source = sources.get(name)
        if isinstance(source, nn.Linear) and is_quantized(source):
            made.set_submodule(name, copy.copy(source))
            continue
        for key, parameter in module.named_parameters(recurse=False):
            value = getattr(source, key, None)
            if not _is_plain(value, parameter):
                found = f"no plain weight {f'{name}.{key}'!r} of shape {tuple(parameter.shape)}"
                rule = "a causal language model, whole on its device, plain or in 4 bits (NF4)"
                raise UserError(f"{_PLACE}: {type(live).__name__}", found, rule)
            setattr(module, key, nn.Parameter(value.detach(), requires_grad=False))
        for key, _ in module.named_buffers(recurse=False):
            # A copy: some rotary embeddings change theirs in a pass.
            module._buffers[key] = source._buffers[key].clone()
    place = ModelConfig(path="the trainer's model")
    record = model_record(place, live.device, made.dtype, made, tokenizer, "")
    return frozen_base(made, tokenizer, record, Path())


def _is_plain(value: object, expected: torch.Tensor) -> bool:
    """Whether it is a tensor of that shape, of floating point, and no shard."""
    if not isinstance(value, torch.Tensor) or hasattr(value, "full_tensor"):
        return False
    return value.shape == expected.shape and value.is_floating_point()


def _with_adapter(base: Base, model: PeftModel) -> tuple[Base, str | None]:
    """The base with the active adapter, and its name there; None if it is a part of the model.

    The adapter goes through its files, so it is read, checked and scored as a stored one is.
    """
    names = model.active_adapters
    if len(names) != 1:
        raise UserError(_PLACE, f"the active adapters {', '.join(names)}", "one that trains")
    name, kind = names[0], model.peft_config[names[0]].peft_type
    if model.peft_config[name].is_prompt_learning:
        found = f"adapter {name!r} of PEFT's {kind.value}, which adds tokens"
        raise UserError(_PLACE, found, "a method that changes layers")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)
        place = Path(folder) if name == "default" else Path(folder, name)
        try:
            if peft_type(place) != "LORA":
                from rankscope.models.peft_backend.tuner import load_tuner  # takes a second

                return load_tuner(base, place), None
            adapter = load_adapter(place, name)
            linears = base.linears().items()
            shapes = {n: (linear.out_features, linear.in_features) for n, linear in linears}
            check_adapter_fits(place, adapter, shapes)
        except RankscopeError as error:
            where = f"{_PLACE}: adapter {name!r}"
            raise UserError(where, error.found, error.expected, error.do) from error
    base.multi_lora.attach(adapter.to(base.device))
    return base, name
