"""Load the base that a study's ``model`` section names: pocket, local folder or hub."""

import re
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from rankscope.config.study import ModelConfig
from rankscope.data.encode import resolved_format
from rankscope.device import dtype_name
from rankscope.errors import UserError, first_line, reading
from rankscope.hashing import weights_sha256
from rankscope.models.attention import varlen
from rankscope.models.attention.varlen import KVCache
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.kernels import kernels_of, use_kernels
from rankscope.models.model_folder import damaged, model_folder
from rankscope.models.multi_lora import MultiLora
from rankscope.models.output_layer import block_output_layer, note_plain_logits
from rankscope.models.parameters import read_model_config
from rankscope.models.quantize import check_quantize, quantization
from rankscope.models.sharding import ONE_SHARD, Shards
from rankscope.records import ModelRecord

LAYER = re.compile(r"model\.layers\.\d+\.(?!.*inv_freq$)")
"""Matches a weight of a decoder layer, but not the rotary frequencies in old checkpoints."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    with reading(f"model folder {folder}", "a folder with a usable tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    return tokenizer


def load_base(
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    quantize: Literal["none", "4bit"] = "none",
    tokenizer: PreTrainedTokenizerBase | None = None,
    shards: Shards = ONE_SHARD,
) -> Base:
    """Load the base of a study's model section, frozen, with varlen attention.

    Args:
        quantize: ``4bit`` holds the linear layers in 4 bits; products then run in ``dtype``.
        tokenizer: used in place of the folder's, which then needs none.
        shards: several shards hold the base together; call this on shard 0.
    """
    source = model_folder(config)
    tokenizer = tokenizer or load_tokenizer(source)
    options: dict[str, Any] = {}
    if quantize == "4bit":
        check_quantize(device)
        options = {"quantization_config": quantization(dtype), "device_map": {"": device}}
    model = load_model(source, dtype, **options)
    sha256 = weights_sha256(source)
    record = model_record(config, device, dtype, model, tokenizer, sha256, quantize)
    if shards.size > 1:
        return shards.hold("base", model, tokenizer, record, source)
    if not options:
        model.to(device)  # type: ignore[arg-type]  # a wrapper without its own types
    return frozen_base(model, tokenizer, record, source)


def model_record(
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sha256: str,
    quantize: Literal["none", "4bit"] = "none",
) -> ModelRecord:
    shape = model.config.get_text_config()
    return ModelRecord(
        label=config.label,
        sha256=sha256,
        architecture=type(model).__name__,
        num_parameters=model.num_parameters(),  # packed 4-bit weights counted one by one
        num_layers=int(shape.num_hidden_layers),
        hidden_size=int(shape.hidden_size),
        vocab_size=int(shape.vocab_size),
        dtype=dtype_name(dtype),
        device=str(device),
        prompt_format=resolved_format(config.prompt_format, tokenizer),
        quantize=quantize,
    )


def load_trained_model(base: Base, folder: Path) -> Base:
    base.shards.release("trained")  # before there is another one
    model = load_model(folder, base.model.dtype)
    if base.is_sharded:
        return base.shards.hold("trained", model, base.tokenizer, base.record, folder)
    model.to(base.device)  # type: ignore[arg-type]  # a wrapper without its own types
    trained = frozen_base(model, base.tokenizer, base.record, folder)
    use_kernels(model, kernels_of(base.model))
    return trained


def frozen_base(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: ModelRecord, folder: Path
) -> Base:
    model.eval()
    model.requires_grad_(False)
    block_output_layer(model)
    packs = model.config.get_text_config()._attn_implementation == varlen.NAME
    base = Base(model, tokenizer, record, folder, MultiLora(model), packs=packs)
    if packs:
        try:
            check_rows_apart(base)
        except UserError:
            base.packs = False
            model.set_attn_implementation("eager")  # which every architecture has
    if not base.packs:
        with reading(record.architecture, "a model that transformers itself can run"):
            check_rows_apart(base)
    note_plain_logits(model, partial(pass_one_token, base))
    return base


def pass_one_token(base: Base) -> Tensor:
    """Run one token, for logits (1, vocabulary); other shards take part in a pass of shard 0."""
    return base.logits(RowBatch.of([Row([0], [0])], base.device))


def load_model(folder: Path, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """Load the weights of a folder into a model with varlen attention.

    Args:
        options: transformers' own options.

    Raises UserError for an unusable architecture. Raises IntegrityError for weights that are
    missing, left over, of another shape or not finite: transformers would fill in random numbers,
    or drop the rest.
    """
    model = _filled_model(folder, dtype, options)
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise damaged(folder, f"a weight {name!r} that is not finite", "numbers")
    return model


def check_stored_weights(folder: Path) -> None:
    """Check that a folder's weights fit its ``config.json`` in names and shapes; values are
    dropped.

    Raises the errors of :func:`load_model`.
    """
    _filled_model(folder, torch.float32, {"device_map": "meta"})


def _filled_model(folder: Path, dtype: torch.dtype, options: dict[str, Any]) -> PreTrainedModel:
    disable_progress_bar()  # transformers' own
    with reading(f"model folder {folder}", "a causal language model of transformers"):
        config = read_model_config(folder)
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=varlen.attention_of(config),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                use_kernels=False,  # Transformers 5.25 would fetch compiled code from the hub
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # to say below which one it is
                **options,
            )
        except (RuntimeError, SafetensorError) as error:
            raise damaged(folder, f"weights that cannot be read ({first_line(error)})") from error
    model, info = loaded
    stray = [name for name in info["unexpected_keys"] if LAYER.match(name)]
    for what, names in (("weights missing", info["missing_keys"]), ("further weights", stray)):
        if names:
            found = f"{len(names)} {what}, such as {min(names)!r}"
            raise damaged(folder, found, "those that config.json describes")
    for name, shape, expected in sorted(info["mismatched_keys"]):
        found = f"{name!r} of shape {tuple(shape)}"
        raise damaged(folder, found, f"{tuple(expected)} as config.json says")
    return cast(PreTrainedModel, model)


def check_rows_apart(base: Base) -> None:
    """Check that concatenated rows do not see each other, by running two rows together and alone.

    Layers other than attention that mix tokens (convolutions, state spaces, linear attention) would
    carry one row into the next. If rows run alone, a state that outlives a pass would do so. In
    that case this also finds whether the model's own cache continues a row correctly.
    """
    vocabulary = base.record.vocab_size
    first = [(7 * i + 3) % vocabulary for i in range(9)]
    second = [(5 * i + 2) % vocabulary for i in range(6)]
    keep = range(len(second))
    with torch.inference_mode():
        alone = base.logits(RowBatch.of([Row(second, keep)], base.device)).float()
        both = RowBatch.of([Row(first, []), Row(second, keep)], base.device)
        gap = float((base.logits(both).float() - alone).norm() / alone.norm())
        tolerance = 1e-5 if base.model.dtype == torch.float32 else 0.05
        if not base.packs:
            cache = KVCache(1, len(second))
            for part in (second[:-1], second[-1:]):
                batch = RowBatch.of([Row(part, [len(part) - 1])], base.device)
                last = base.logits(batch, cache, store=True).float()
            base.resumes = bool((last - alone[-1]).norm() < tolerance * alone[-1].norm())
    if not gap < tolerance:
        found = f"a row's logits that change by {gap:.1e} (relative) when another row precedes it"
        expected = "an architecture that mixes tokens in attention alone"
        raise UserError(base.record.architecture, found, expected, "choose another model")
