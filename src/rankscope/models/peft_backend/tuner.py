"""One PEFT method on a copy of the frozen base: train and store it."""

import contextlib
import copy
import json
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load
from torch import Tensor, nn
from transformers import PretrainedConfig

from rankscope.errors import IntegrityError, RankscopeError, UserError, reason_of
from rankscope.models.adapters.folder import (
    BASE_HASH,
    RECOPY,
    check_same_base,
    read_weights,
    write_adapter_files,
)
from rankscope.models.adapters.settings import CONFIG, WEIGHTS, match_pattern
from rankscope.models.base import Base
from rankscope.models.load import check_rows_apart
from rankscope.models.lora import derive_seed
from rankscope.models.parameters import model_on_meta
from rankscope.models.peft_backend.settings import (
    inject_peft,
    peft_config,
    trainable_parameters,
    type_name,
)
from rankscope.models.quantize import dense_weight
from rankscope.records import ModelRecord, TrialSpec

INIT_IN_PLACE = ("olora",)  # ``init_lora_weights`` that change the base's own weights
ADAPTER = "default"  # PEFT's name for the only adapter of a model


class PeftTuner:
    """A PEFT method on a copy of a base; values that it does not train are the base's own."""

    def __init__(
        self, base: Base, config: PeftConfig, seed: int, make: Callable[[Any], PeftModel]
    ) -> None:
        """``make`` wraps the copy; ``seed`` decides the method's random draws."""
        starts_in_place = str(getattr(config, "init_lora_weights", None)).lower() in INIT_IN_PLACE
        self.tuned = base.copied(in_place=not starts_in_place)
        pairs = zip(self.tuned.model.parameters(), base.model.parameters(), strict=True)
        self.frozen = dict(pairs)  # Parameter of the copy -> the base's
        self.originals = {**dict(base.model.named_modules()), **base.linears()}
        self.checksum = _bit_sum(self.frozen.values())
        self.seed = seed
        self.model = make(self.tuned.model)  # Around the copy, which now runs the method itself
        for parameter in self.parameters():
            if parameter in self.frozen:
                parameter.data = parameter.data.clone()
        self.model.eval()  # PEFT leaves its dropout on; each step switches it on for itself
        self.tuned.multi_lora.injected_tuner = self

    @property
    def config(self) -> Any:
        return self.model.peft_config[ADAPTER]

    # --- training

    def parameters(self) -> list[nn.Parameter]:
        return list(trainable_parameters(self.model).values())

    def layers(self) -> dict[str, BaseTunerLayer]:
        return {
            name: module
            for name, module in self.tuned.model.named_modules()
            if isinstance(module, BaseTunerLayer)
        }

    def train(self, training: bool) -> None:
        """Switch the method's own dropout; the base's stays off, as with every method."""
        for layer in self.layers().values():
            assert isinstance(layer, nn.Module)
            layer.train(training)
            layer.get_base_layer().eval()

    @property
    def draws(self) -> bool:
        """Whether training passes draw random numbers, for dropout or PVeRA's samples.

        Their count depends on the pass.
        """
        rates = [value for name, value in vars(self.config).items() if name.endswith("dropout")]
        return type_name(self.config) == "PVERA" or any(rates)

    def begin_step(self, step: int) -> None:
        """Switch dropout on; the step's random numbers depend on seed and step alone."""
        self.train(True)
        torch.manual_seed(derive_seed("dropout", self.seed, "peft", step))

    @property
    def _adalora(self) -> Any:
        tuner = self.model.base_model
        return tuner if hasattr(tuner, "rankallocator") else None

    def penalize(self) -> None:
        """Add the gradient of AdaLoRA's penalty, in nats, to a step's; other methods have none.

        The penalty is orth_reg_weight times the mean of |P^T P - I| and |Q Q^T - I|, Frobenius
        norms over all matrices: equation 4 of 2303.10512 as in PEFT, unsquared.
        """
        if self._adalora is None:
            return
        norms = []
        for name, p in trainable_parameters(self.model).items():
            if ".lora_A." in name or ".lora_B." in name:
                gram = p @ p.T if ".lora_A." in name else p.T @ p
                norms.append(torch.norm(gram - torch.eye(len(gram), device=p.device)))
        (self.config.orth_reg_weight * torch.stack(norms).mean()).backward()

    def after_update(self, step: int) -> None:
        """Switch dropout off and move AdaLoRA's budget; needs the step's gradients."""
        self.train(False)
        if self._adalora is not None:
            self._adalora.update_and_allocate(step + 1)

    # --- what a checkpoint needs besides the parameters

    def tensors(self) -> dict[str, Tensor]:
        """Return AdaLoRA's importance scores, by name."""
        if self._adalora is None:
            return {}
        allocator = self._adalora.rankallocator
        return {
            f"{kind}/{name}": tensor
            for kind in ("ipt", "exp_avg_ipt", "exp_avg_unc")
            for name, tensor in getattr(allocator, kind).items()
        }

    def counters(self) -> dict[str, Any]:
        """Return AdaLoRA's pattern of kept ranks, JSON-compatible."""
        return {"rank_pattern": getattr(self.config, "rank_pattern", None)}

    def restore(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        if self._adalora is None:
            return
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            copied = tensor.to(self.model.device, copy=True)
            getattr(self._adalora.rankallocator, kind)[name] = copied
        self.config.rank_pattern = counters["rank_pattern"]

    # --- weights

    def mergeable(self) -> list[str]:
        names = []
        for name, layer in self.layers().items():
            if isinstance(layer.get_base_layer(), nn.Linear):
                with contextlib.suppress(Exception):
                    self.merged_weight(name)
                    names.append(name)
        return names

    def merged_weight(self, name: str) -> Tensor:
        """Return W of a :meth:`mergeable` layer with the method merged in, (out, in) float32."""
        single: Any = copy.deepcopy(self.layers()[name])
        single.float()
        single.merge(safe_merge=True)
        return dense_weight(single.get_base_layer())

    @torch.no_grad()
    def relative_update(self) -> float:
        """Return |W - W0|_F / |W0|_F over mergeable layers and the base's own trained parameters.

        The result is 0 without either.
        """
        updates, weights = [], []
        for now, before in self._changed_weights():
            updates.append(float((now.float() - before.float()).norm()))
            weights.append(float(before.float().norm()))
        return math.hypot(*updates) / math.hypot(*weights) if weights else 0.0

    def _changed_weights(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (W, W0) of each changed weight, one at a time."""
        for parameter, before in self.frozen.items():
            if parameter.requires_grad:
                yield parameter.data, before.data
        for name in self.layers():
            with contextlib.suppress(Exception):  # a kind of layer that PEFT cannot merge
                original: Any = self.originals[name]
                yield self.merged_weight(name), dense_weight(original)

    def save(self, base: ModelRecord, folder: Path) -> None:
        """Write the method in PEFT's format; equal methods give equal bytes.

        Raises IntegrityError: the method has written into weights that it shares with the base.
        """
        if _bit_sum(self.frozen.values()) != self.checksum:
            found = "changed weights of the base, which all trials share"
            do = "run it again without that method"
            raise IntegrityError("the PEFT method", found, "those that were loaded", do)
        self.config.base_model_name_or_path = base.label
        pattern = self.counters()["rank_pattern"]  # PEFT renames its keys for the file
        with warnings.catch_warnings():
            # AdaLoRA may prune every rank of a matrix; PEFT takes that for a missing shard.
            warnings.filterwarnings("ignore", "Adapter .* invalid shape")
            self.model.save_pretrained(str(folder), save_embedding_layers=False)
        if pattern is not None:
            self.config.rank_pattern = pattern
        write_adapter_files(folder, load((folder / WEIGHTS).read_bytes()), base)


def _bit_sum(parameters: Iterable[nn.Parameter]) -> int:
    """Sum all values' bits, read as whole numbers; the sum changes when a weight changes."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return sum(int(p.data.view(integers[p.itemsize]).sum(dtype=torch.int64)) for p in parameters)


def new_tuner(base: Base, trial: TrialSpec, num_steps: int) -> PeftTuner:
    """Put a fresh method on a copy of the base; its random numbers depend on the seed alone."""
    assert trial.peft is not None
    config = peft_config(json.loads(trial.peft), trial.targets, num_steps)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed("init", trial.seed, "peft"))
        tuner = PeftTuner(base, config, trial.seed, partial(inject_peft, config=config))
    if not tuner.parameters():
        place, do = f"method peft, {type_name(config)}", "check its settings and the targets"
        raise UserError(place, "no parameter of this model that trains", do=do)
    check_rows_apart(tuner.tuned)
    return tuner


@contextlib.contextmanager
def _errors_of_peft(folder: Path) -> Iterator[None]:
    """Turn PEFT's errors about settings and weights of strangers into errors that name the
    folder."""
    try:
        with warnings.catch_warnings():
            # AdaLoRA's pattern of ranks, which its own loader reads later.
            warnings.filterwarnings("ignore", "The following rank_pattern keys")
            warnings.filterwarnings("ignore", ".*copying from a non-meta parameter")
            warnings.filterwarnings("error", "Found missing adapter keys")
            yield
    except RankscopeError:
        raise
    except Exception as error:
        place, found = f"adapter {folder}", reason_of(error)
        if "size mismatch" in str(error):
            do = "give the model that it was made for"
            raise UserError(place, found, "an adapter of this model", do) from error
        raise IntegrityError(place, found, "a whole adapter", RECOPY) from error


def _stored_config(model: nn.Module, folder: Path) -> PeftConfig:
    config: PeftConfig = PeftConfig.from_pretrained(str(folder))
    _write_out_patterns(config, folder, [name for name, _ in model.named_modules()])
    return config


def check_peft_fits(base: PretrainedConfig, folder: Path) -> None:
    """Check that a stored method fits a model of this configuration, without the model's weights.

    Raises UserError for other shapes, IntegrityError for a damaged method.
    """
    read_weights(folder / WEIGHTS)
    model = model_on_meta(base)
    with _errors_of_peft(folder):
        config = _stored_config(model, folder)
        PeftModel.from_pretrained(model, str(folder), config=config, torch_device="cpu")


def _write_out_patterns(config: Any, folder: Path, names: list[str]) -> None:
    """Replace regular expressions by the modules that they match: PEFT has no limit of time."""
    for key in ("target_modules", "exclude_modules", "feedforward_modules"):
        pattern = getattr(config, key, None)
        if isinstance(pattern, str) and pattern != "all-linear":
            matched = [name for name in names if match_pattern(folder, pattern, name)]
            setattr(config, key, matched)
    for key in ("rank_pattern", "alpha_pattern", "layers_pattern"):
        patterns = getattr(config, key, None) or ()
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            if not re.fullmatch(r"[\w.]*", pattern):
                limit = "PEFT matches expressions of methods other than LoRA without a time limit"
                place = f"adapter {folder}: {CONFIG}: {key}"
                raise UserError(place, f"{pattern!r}", f"names of modules: {limit}")


def load_tuner(base: Base, folder: Path, record: ModelRecord | None = None) -> Base:
    """Put a stored method on a copy of the base, for scoring.

    Args:
        record: replaces the base's own record.

    Raises UserError if the method belongs to another base, IntegrityError if it is damaged.
    """
    _, metadata = read_weights(folder / WEIGHTS)
    check_same_base(folder, metadata.get(BASE_HASH), (record or base.record).sha256)
    with _errors_of_peft(folder):
        config = _stored_config(base.model, folder)
        make = partial(PeftModel.from_pretrained, model_id=str(folder), config=config)
        return PeftTuner(base, config, 0, make).tuned
