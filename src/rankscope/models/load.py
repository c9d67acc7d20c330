"""Load the base that a study's ``model`` section names: pocket, cache, local folder or hub."""

import json
import re
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rankscope.config.study import ModelConfig
from rankscope.errors import IntegrityError, UserError
from rankscope.hashing import weights_sha256
from rankscope.models.attention import varlen
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.multi_lora import MultiLora
from rankscope.models.output_layer import block_output_layer
from rankscope.models.parameters import UNUSABLE
from rankscope.models.quantize import check_quantize, quantization
from rankscope.records import ModelRecord

LAYER = re.compile(r"model\.layers\.\d+\.(?!.*inv_freq$)")
"""A weight of a decoder layer; old checkpoints also store rotary frequencies, which are not."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def model_folder(config: ModelConfig, weights: bool = True) -> Path:
    """The local folder of the model, with ``weights`` or without; a hub model is downloaded."""
    if config.pocket:
        return pocket_folder()
    if config.cached is not None:
        from rankscope.models.fetch import cached_model_folder

        return cached_model_folder(config.cached)
    if config.path is not None:
        return checked_folder(Path(config.path).expanduser(), weights)
    assert config.hub is not None
    return hub_folder(config.hub, config.revision, weights)


def pocket_folder() -> Path:
    return Path(__file__).with_name("pocket_weights")


def hub_folder(hub: str, revision: str | None, weights: bool = True) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            hub,
            revision=revision,
            allow_patterns=[
                *("*.json", "*.model", "*.jinja", "*.txt"),
                *(["*.safetensors"] if weights else []),
            ],
            # Second copies of the same weights in another layout.
            ignore_patterns=["original/*", "consolidated*", "*/*"],
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"model {hub!r}: download from the hub failed ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); check the id and revision, or give a local folder if "
            "there is no network: model: {path: ./folder}"
        ) from error
    return checked_folder(Path(folder), weights)


def checked_folder(folder: Path, weights: bool = True) -> Path:
    """The folder itself, after checking that it holds a model that can be loaded."""
    if not folder.is_dir():
        raise UserError(f"model folder {folder}: no such folder")
    if not (folder / "config.json").is_file():
        raise UserError(f"model folder {folder}: no config.json; expected a Hugging Face folder")
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"model folder {folder}: config.json cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(
            f"model folder {folder}: config.json holds a {type(settings).__name__}; expected a "
            "Hugging Face model's configuration, an object"
        )
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        if pickles:
            raise UserError(
                f"model folder {folder}: {pickles[0]} is a pickle, which can run code when loaded; "
                "convert it once on a machine that you trust: model.save_pretrained(folder) writes "
                "safetensors"
            )
        if weights:
            raise UserError(f"model folder {folder}: no *.safetensors weights")
    return folder


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except UNUSABLE as error:
        raise UserError(f"model folder {folder}: tokenizer cannot be loaded: {error}") from error
    return tokenizer


def load_base(
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    folder: Path | None = None,
    quantize: Literal["none", "4bit"] = "none",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Base:
    """Load the base of a study's model section, frozen, with varlen attention.

    ``folder`` holds the weights of a fully fine-tuned trial of the same base, to load in their
    place. ``4bit`` holds the linear layers in 4 bits; products then run in ``dtype``. A
    ``tokenizer`` is used instead of the folder's, which then needs none.
    """
    source = folder if folder is not None else model_folder(config)
    tokenizer = tokenizer or load_tokenizer(source)
    if quantize == "4bit":
        check_quantize(device)
        model = load_model(
            source, dtype, quantization_config=quantization(dtype), device_map={"": device}
        )
    else:
        model = load_model(source, dtype)
        model.to(device)  # type: ignore[arg-type]  # a wrapper without its own types
    shape = model.config.get_text_config()
    record = ModelRecord(
        label=config.label,
        sha256=weights_sha256(source),
        architecture=type(model).__name__,
        num_parameters=model.num_parameters(),  # packed 4-bit weights counted one by one
        num_layers=int(shape.num_hidden_layers),
        hidden_size=int(shape.hidden_size),
        vocab_size=int(shape.vocab_size),
        dtype=str(dtype).removeprefix("torch."),
        quantize=quantize,
        device=str(device),
        prompt_format=resolved_prompt_format(config, tokenizer),
    )
    return frozen_base(model, tokenizer, record, source)


def load_trained_model(base: Base, folder: Path) -> Base:
    """A fully fine-tuned copy of ``base`` as a base of its own."""
    model = load_model(folder, base.model.dtype)
    model.to(base.device)  # type: ignore[arg-type]  # a wrapper without its own types
    record = base.record.model_copy(update={"sha256": weights_sha256(folder)})
    return frozen_base(model, base.tokenizer, record, folder)


def frozen_base(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: ModelRecord, folder: Path
) -> Base:
    """Freeze a loaded model and check that it keeps rows apart."""
    model.eval()
    model.requires_grad_(False)
    block_output_layer(model)
    base = Base(model, tokenizer, record, folder, MultiLora(model))
    check_rows_apart(base)
    return base


def load_model(folder: Path, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """The weights of a folder in a model with varlen attention; ``options`` are transformers'.

    Raises UserError for an architecture that cannot be used, and IntegrityError for weights that
    are missing, left over or not finite: transformers would fill in random numbers, or drop the
    rest.
    """
    varlen.register_attention()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=varlen.NAME,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except UNUSABLE as error:
        raise UserError(f"model folder {folder}: cannot be loaded: {error}") from error
    except (RuntimeError, SafetensorError) as error:
        raise IntegrityError(f"model folder {folder}: weights cannot be read: {error}") from error
    model: PreTrainedModel = loaded[0]
    absent = sorted(loaded[1]["missing_keys"])
    if absent:
        raise IntegrityError(
            f"model folder {folder}: {len(absent)} weights are missing, such as {absent[0]!r}"
        )
    stray = sorted(name for name in loaded[1]["unexpected_keys"] if LAYER.match(name))
    if stray:
        raise IntegrityError(
            f"model folder {folder}: {len(stray)} weights have no place in the model that "
            f"config.json describes, such as {stray[0]!r}"
        )
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise IntegrityError(f"model folder {folder}: weight {name!r} is not finite")
    return model


def check_rows_apart(base: Base) -> None:
    """Check that concatenated rows do not see each other, by running two rows together and alone.

    Layers other than attention that mix tokens (convolutions, state spaces, linear attention) would
    carry one row into the next.
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
    if not gap < tolerance:
        raise UserError(
            f"{base.record.architecture}: a row's logits change by {gap:.1e} (relative) when "
            "another row precedes it; architectures that mix tokens outside attention cannot be "
            "used"
        )


def resolved_prompt_format(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase
) -> Literal["chat", "plain"]:
    """``chat`` or ``plain``; ``auto`` means ``chat`` if the tokenizer has a chat template."""
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if config.prompt_format == "auto":
        return "chat" if has_template else "plain"
    if config.prompt_format == "chat" and not has_template:
        raise UserError(
            f"model {config.label}: prompt_format is 'chat' but its tokenizer has no chat "
            "template; expected 'plain' or 'auto'"
        )
    return config.prompt_format


def shapes_folder(model: str, weights: bool = True) -> Path:
    """The folder with the ``config.json`` of a local folder, ``pocket``, a fetched model or a hub
    id.

    A local folder may lack the weights; a hub model is downloaded, with ``weights`` or without.
    """
    local = Path(model).expanduser()
    if local.exists():
        return local
    try:
        return model_folder(ModelConfig.model_validate(model), weights)
    except ValidationError as error:
        raise UserError(f"model {model!r}: no such folder, and not a model's name") from error
