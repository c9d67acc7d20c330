"""A forgetting alarm for transformers' ``Trainer`` and the trainers of TRL.

The trainer's model itself never runs for this: its modules have hooks, dropout, adapters to switch
and a mode to restore. A second set of modules around the same weights in memory runs in its place,
in the engine that scores studies. An adapter goes there in the way of ``rankscope eval``.
"""

import copy
import inspect
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import CallbackHandler, TrainerState

from rankscope.advise.statistics.estimates import Comparison, weighted_estimate
from rankscope.advise.statistics.matching import cluster_labels
from rankscope.config.loader import described, fault_at
from rankscope.config.section import dotted, short_repr
from rankscope.config.study import ModelConfig, StudyConfig
from rankscope.data.study_data import prepare_data
from rankscope.data.task_source import missing_rows
from rankscope.errors import NotFiniteError, RankscopeError, UserError
from rankscope.evaluate.evaluator import Evaluation, evaluate_task
from rankscope.evaluate.scorers import get_scorer
from rankscope.formatting import amount, unit_of, with_interval
from rankscope.models.adapters.folder import load_adapter
from rankscope.models.attention import varlen
from rankscope.models.base import Base
from rankscope.models.given import peft_type
from rankscope.models.load import frozen_base, model_record
from rankscope.models.parameters import model_on_meta
from rankscope.models.quantize import check_quantize, is_quantized
from rankscope.records import BASE, Estimate

_PLACE, _MODEL = "ForgettingCallback", "the trainer's model"


class ForgettingCallback(TrainerCallback):
    """Scores retention tasks during training, logs the change against the base, and warns or stops.

    The base is the model with its adapters off; in full fine-tuning, the model as training begins.
    Each task is scored on its test items as in ``rankscope eval``, with products in the dtype of
    the weights. The log has ``forgetting/TASK/score``, ``change`` (minus the base) and the ends of
    its 95 % interval, ``low`` and ``high``, paired by items, in shares of 1 or nats per token. It
    also has ``base`` once, and ``forgetting/seconds``, the time of the scoring.

    A task is over the limit if its interval is wholly below ``-max_loss``, or if the trained
    model's likelihoods are not finite. Then a warning is given, and with ``at_limit="stop"``
    training stops. A change below ``-max_loss`` whose interval reaches above it may be chance over
    the items: it warns, and never stops. The interval holds for one task at one step. Of many steps
    without such a loss, up to about one in forty is over the limit by chance.

    Losses, gradients, random numbers and the trainer's model stay as they would be without it.

    Args:
        tasks: named tasks, or tasks as in a study file.
        every: optimizer steps between two scorings; the end of training is scored, too.
        max_loss: largest accepted fall of a task's score, share of 1 or nats per token.
        data_dir: folder with ``<task>/test.jsonl`` for named tasks; None takes the hub, or the
            package for tasks inside it.
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
        limit = "0 or more and below 1: 0.02 is 2 points, or 0.02 nats per token"
        rules = (
            ("tasks", tasks, bool(tasks), "one or more"),
            ("every", every, type(every) is int and every > 0, "optimizer steps, 1 or more"),
            ("max_loss", max_loss, type(max_loss) in (int, float) and 0 <= max_loss < 1, limit),
            ("at_limit", at_limit, at_limit in ("warn", "stop"), "'warn' or 'stop'"),
        )
        faults = [UserError(name, short_repr(v), rule) for name, v, fits, rule in rules if not fits]
        listed = tasks if isinstance(tasks, str) else [*tasks]
        evaluate = {"cross_domain": listed, "max_items": max_items}
        values = {"name": _PLACE, "model": {"path": _MODEL}, "data_dir": data_dir and str(data_dir)}
        try:
            self.config = StudyConfig.model_validate(values | {"evaluate": evaluate})
            faults += missing_rows(self.config)
        except ValidationError as error:
            for details in error.errors(include_url=False) if tasks else ():
                place = dotted(details["loc"]).replace("evaluate.cross_domain", "tasks")
                fault = described(details, StudyConfig)
                faults.append(fault_at(fault, place.removeprefix("evaluate.") or "tasks"))
        if faults:
            several = UserError(_PLACE, f"{len(faults)} faults", do="correct them", faults=faults)
            raise several if faults[1:] else faults[0]
        self.every, self.max_loss, self.at_limit = every, max_loss, at_limit

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **given: Any) -> None:
        """Score the base. Raises UserError: the model or its tokenizer cannot be used."""
        started, model = time.perf_counter(), given["model"]
        tokenizer = getattr(given["processing_class"], "tokenizer", given["processing_class"])
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise UserError(_PLACE, "a trainer without a tokenizer", "processing_class=tokenizer")
        # A copy: encoding for scores changes the settings of the tokenizer's backend.
        self.data = prepare_data(self.config, copy.deepcopy(tokenizer))
        for spec in (loaded.spec for loaded in self.data.tasks.values()):
            if get_scorer(spec.scorer).compares_with_base:
                found = f"the scorer {spec.scorer!r}, which needs a study"
                raise UserError(f"task {spec.name!r}", found, "a task scored by itself")
        self.base, self.scored_step = dict[str, Evaluation](), -1
        for task, scored in self._evaluate(model, trained=False).items():
            if isinstance(scored, str):
                raise NotFiniteError(f"task {task!r}: the base", scored, "one that can be scored")
            if scored[0].standard_error is None and scored[0].n > 1:
                found = f"a score ({scored[0].metric}) that is no mean of its items"
                raise UserError(f"task {task!r}", found, "a task whose items have scores")
            self.base[task] = scored
        scores = {f"forgetting/{task}/base": of[0].score for task, of in self.base.items()}
        self._log(args, state, control, started, scores)
        if state.global_step and not isinstance(model, PeftModel):
            text = f"training continues, so the model of step {state.global_step} is the base"
            warnings.warn(f"{_PLACE}: {text}", stacklevel=2)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **given: Any) -> None:
        """Score the model if a scoring is due, and at the last step."""
        if state.global_step % self.every == 0 or control.should_training_stop:
            self._watch(args, state, control, given["model"])

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **given: Any) -> None:
        """Score the model unless its last step was scored; loaded best weights are always
        scored."""
        if state.global_step != self.scored_step or args.load_best_model_at_end:
            self._watch(args, state, control, given["model"])

    def _watch(self, args: Any, state: TrainerState, control: Any, model: Any) -> None:
        started, self.scored_step = time.perf_counter(), state.global_step
        values, alarms = dict[str, float](), dict[str, bool]()  # Text -> over the limit
        for task, scored in self._evaluate(model, trained=True).items():
            if isinstance(scored, str):
                alarms[f"{task} cannot be scored any more: {scored}"] = True
                continue
            change = _change(scored, self.base[task])
            found: dict[str, Any] = {"score": scored[0].score, "change": change.value}
            found |= {} if change.high is None else {"low": change.low, "high": change.high}
            values |= {f"forgetting/{task}/{key}": value for key, value in found.items()}
            if change.value < -self.max_loss:
                unit = unit_of(self.data.tasks[task].spec.score_unit)
                sure = change.is_below(-self.max_loss)
                what = "wholly " * sure + f"beyond the limit of {amount(self.max_loss, unit)}"
                text = f"{task}: {with_interval(change, unit)} {unit.difference}, {what}"
                alarms[text + ", but it may be chance" * (not sure)] = sure
        self._log(args, state, control, started, values)
        if alarms and state.is_world_process_zero:
            header = f"{_PLACE}, step {state.global_step}:"
            warnings.warn("\n  ".join([header, *alarms]), stacklevel=2)
        control.should_training_stop |= any(alarms.values()) and self.at_limit == "stop"

    def _evaluate(self, model: Any, *, trained: bool) -> dict[str, Evaluation | str]:
        """Evaluate the model, or its base, by task; a text says why there is no evaluation."""
        tasks, found = self.data.tasks, dict[str, Evaluation | str]()
        if trained and not all(bool(p.isfinite().all()) for p in model.parameters()):
            return dict.fromkeys(tasks, "its weights are not finite")
        # PEFT draws a start for an adapter that it loads.
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            base, adapter = live_base(model, self.data.encoder.tokenizer), None
            if isinstance(model, PeftModel):  # before training, too: it may have to be refused
                tuned, attached = _with_adapter(base, model)
                base, adapter = (tuned, attached) if trained else (base, None)
            models, settings = {adapter: "trained" if trained else BASE}, self.config.evaluate
            for name, task in tasks.items():
                scored = evaluate_task(base, self.data.encoder, task, "test", models, settings)
                found[name] = scored[1].get(adapter) or scored[0][adapter]
        return found

    def _log(self, args: Any, state: TrainerState, control: Any, start: float, logs: Any) -> None:
        """Log like ``Trainer.log``: into the history, and to progress bar and trackers."""
        logs |= {"forgetting/seconds": time.perf_counter() - start, "epoch": state.epoch or 0.0}
        state.log_history.append({**logs, "step": state.global_step})
        # A callback is given neither the trackers nor its trainer: look for them among its callers.
        frame = inspect.currentframe()
        while frame and not isinstance(frame.f_locals.get("self"), CallbackHandler):
            frame = frame.f_back
        if frame:  # A copy: logging withdraws the request for the trainer's own log of this step.
            frame.f_locals["self"].on_log(args, state, copy.copy(control), logs)


def _change(scored: Evaluation, base: Evaluation) -> Estimate:
    tuned, reference = (np.array([item.score for item in items]) for _, items in (scored, base))
    clusters = cluster_labels(tuple(item.subject for item in base[1]))
    return weighted_estimate([Comparison(tuned[None], reference, clusters)])


def live_base(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> Base:
    """Put the model without adapters into separate modules around the same weights in memory.

    Raises UserError for a model that the engine cannot run: no causal language model, weights that
    processes share among them, or adapters without :class:`PeftModel`.
    """
    live: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if live is model and any(isinstance(m, BaseTunerLayer) for m in model.modules()):
        raise UserError(_PLACE, "adapters in a model that is no PeftModel", "get_peft_model's")
    config = copy.deepcopy(live.config)
    config._attn_implementation = varlen.attention_of(config)
    made = model_on_meta(config)
    # The layer inside a wrapper comes after it, and takes its place.
    sources = {key.replace(".base_layer", ""): layer for key, layer in live.named_modules()}
    for name, module in [*made.named_modules()]:
        source = sources.get(name)
        if isinstance(source, torch.nn.Linear) and is_quantized(source):
            check_quantize(live.device)  # on a CPU, scoring would pack the shared weights anew
            made.set_submodule(name, copy.copy(source))
            continue
        for key, parameter in module.named_parameters(recurse=False):
            value: Any = getattr(source, key, None)
            has_shape = getattr(value, "shape", None) == parameter.shape
            if not has_shape or hasattr(value, "full_tensor") or not value.is_floating_point():
                found = f"no plain weight {f'{name}.{key}'!r} of shape {tuple(parameter.shape)}"
                rule = "a causal language model, whole on its device, plain or in 4 bits (NF4)"
                raise UserError(f"{_PLACE}: {type(live).__name__}", found, rule)
            setattr(module, key, torch.nn.Parameter(value.detach(), requires_grad=False))
        for key, _ in module.named_buffers(recurse=False):
            # A copy: some rotary embeddings change theirs in a pass.
            module._buffers[key] = getattr(source, key).clone()
    record = model_record(ModelConfig(path=_MODEL), live.device, made.dtype, made, tokenizer, "")
    return frozen_base(made, tokenizer, record, Path())


def _with_adapter(base: Base, model: PeftModel) -> tuple[Base, str | None]:
    """Put the active adapter on the base, and return its name there.

    The name is None if the adapter is a part of the model. The adapter goes through its files, so
    it is read, checked and scored like a stored one.
    """
    name, *others = model.active_adapters
    config: Any = model.peft_config[name]
    if others or config.is_prompt_learning:
        found = f"active adapters {[name, *others]}, PEFT's {config.peft_type.value}"
        raise UserError(_PLACE, found, "one adapter, which changes layers and adds no tokens")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)
        place = Path(folder) if name == "default" else Path(folder, name)
        try:
            if peft_type(place) != "LORA":
                from rankscope.models.peft_backend.tuner import load_tuner  # takes a second

                return load_tuner(base, place), None
            shapes = {key: (of.out_features, of.in_features) for key, of in base.linears().items()}
            adapter = load_adapter(place, name, shapes=shapes)
        except RankscopeError as error:
            raise UserError(f"adapter {name!r}", error.found, error.expected, error.do) from error
    base.multi_lora.attach(adapter.to(base.device))
    return base, name
