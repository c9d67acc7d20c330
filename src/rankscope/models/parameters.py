"""The cost of a rank before training: parameters, and the memory that they need.

The architecture is built on torch's meta device, which has shapes and no storage: a folder with
``config.json`` is enough, for a model of any size.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rankscope.config.arm import ArmConfig
from rankscope.errors import UserError, reading
from rankscope.records import TrialSpec

FLOAT32_BYTES = 4
MATCHED = 0.05  # Largest relative difference of parameters that count as equally many
ADAMW_STATES = 2  # First and second moment, float32 each


@dataclass(frozen=True, slots=True)
class Architecture:
    num_parameters: int  # Tied weights counted once
    linear_shapes: dict[str, tuple[int, int]]  # By module path, (out, in), the output layer too
    output_layer: str | None  # Module path of the layer that gives the logits


def read_model_config(path: Path) -> PretrainedConfig:
    """Read the configuration of a model folder, or of one ``config.json``; no weights are
    needed."""
    folder = path.parent if path.name == "config.json" else path
    if not (folder / "config.json").is_file():
        raise UserError(f"model folder {folder}", "no config.json", "a Hugging Face folder")
    with reading(folder / "config.json", "a usable configuration"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not isinstance(config, PretrainedConfig):
        raise UserError(folder / "config.json", expected="the configuration of one model")
    # A name in a stranger's file would override the implementation that Rankscope asks for, and
    # ``owner/kernel`` would be downloaded from the hub and run.
    config._attn_implementation = None
    config._experts_implementation = None
    return config


def model_on_meta(config: PretrainedConfig) -> PreTrainedModel:
    file = Path(str(config.name_or_path or ""), "config.json")
    place = f"{file}, model type {config.model_type!r}"
    with reading(place, "a causal language model that can be built"), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return model


def nbytes(model: torch.nn.Module) -> int:
    """Count the bytes of a model's parameters and buffers, shared ones once."""
    parts = [*model.parameters(), *model.buffers()]
    return sum(part.numel() * part.itemsize for part in parts)


def architecture(config: PretrainedConfig) -> Architecture:
    model = model_on_meta(config)
    output = model.get_output_embeddings()
    linear = {
        name: module for name, module in model.named_modules() if type(module) is torch.nn.Linear
    }
    return Architecture(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        linear_shapes={name: (m.out_features, m.in_features) for name, m in linear.items()},
        output_layer=next((name for name, module in linear.items() if module is output), None),
    )


def target_shapes(shapes: Architecture, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return (out, in) of the linear layers that ``targets`` name, by module path.

    A target is the last part, or parts, of a module path, as in PEFT's ``target_modules``.
    """
    names = [name for name in shapes.linear_shapes if name != shapes.output_layer]
    wanted = matching_names(shapes.linear_shapes, targets, names)
    return {name: shape for name, shape in shapes.linear_shapes.items() if name in wanted}


def compared_matrices(
    shapes: Architecture, trials: Sequence[TrialSpec]
) -> dict[str, tuple[int, int]]:
    """Return the matrices to compare between a study's arms, as module path -> (out, in).

    They are those that some adapter changes, so that full fine-tuning and LoRA are measured on the
    same ones. Without adapters they are all linear layers but the output head.
    """
    targets = {target for trial in trials for target in trial.targets}
    targets = targets or set(shapes.linear_shapes) - {shapes.output_layer or ""}
    return target_shapes(shapes, sorted(targets))


def matching_names(
    names: Iterable[str], targets: Sequence[str], candidates: Iterable[str]
) -> set[str]:
    """Return the module paths that ``targets`` name; errors list the ends of ``candidates``."""
    paths, wanted = list(names), set[str]()
    for target in targets:
        matched = {path for path in paths if path == target or path.endswith("." + target)}
        if not matched:
            known = sorted({path.rsplit(".", 1)[-1] for path in candidates})
            found = "no linear layer of this model that it matches"
            expected = f"some of: {', '.join(known)}"
            raise UserError(f"target module {target!r}", found, expected, "correct it")
        wanted |= matched
    return wanted


def lora_parameters(shapes: Architecture, rank: int, targets: Sequence[str]) -> int:
    """Return the sum of rank * (in + out) over matching layers (2106.09685, section 4.2)."""
    if rank < 1:
        raise UserError(f"rank {rank}", expected="a whole number of at least 1")
    return rank * sum(sum(shape) for shape in target_shapes(shapes, targets).values())


def with_matched_ranks(arms: Sequence[ArmConfig], shapes: Architecture) -> list[ArmConfig]:
    """Split each arm with ``match: parameters`` into one arm for each set of targets."""
    found = list[ArmConfig]()
    for arm in arms:
        sets = arm.target_sets() if arm.match else []
        for targets in sets:
            first, per_rank = (lora_parameters(shapes, 1, s) for s in (sets[0], targets))
            ranks = [max(1, round(rank * first / per_rank)) for rank in arm.rank]
            for rank, matched in zip(arm.rank, ranks, strict=True):
                if abs(matched * per_rank - rank * first) > MATCHED * rank * first:
                    raise UserError(
                        f"rank {rank} of an arm with 'match: parameters'",
                        f"{matched * per_rank:,} parameters at the closest rank {matched} of "
                        f"{', '.join(targets)}",
                        f"{rank * first:,}, to within {MATCHED:.0%}",
                        "give higher ranks",
                    )
            update = {"targets": [list(targets)], "rank": ranks, "match": None}
            found.append(arm.model_copy(update=update))
        found += [] if sets else [arm]
    return found


def largest_useful_rank(shapes: Architecture, targets: Sequence[str]) -> int:
    """Return min(in, out) of the smallest matching layer; higher ranks add parameters, no
    capacity."""
    return min(min(shape) for shape in target_shapes(shapes, targets).values())


def rank_notes(arms: Sequence[ArmConfig], shapes: Architecture) -> list[str]:
    """Note ranks that are of no use. Raises UserError for targets that match nothing."""
    notes: list[str] = []
    for arm in arms:
        if arm.is_full or not arm.trains:
            continue
        for targets in arm.target_sets():
            cap = largest_useful_rank(shapes, targets)
            notes += [
                f"rank {rank} is above {cap}, the smaller dimension of the smallest target matrix: "
                f"ranks beyond {cap} add parameters there but no directions"
                for rank in arm.rank
                if rank > cap
            ]
    return list(dict.fromkeys(notes))
