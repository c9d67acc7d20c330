"""Location of a model's files: pocket, local folder or hub. Needs no torch."""

from pathlib import Path

from rankscope.config.study import ModelConfig
from rankscope.errors import IntegrityError, UserError, reading
from rankscope.filesystem import read_json_object, user_path

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def damaged(folder: Path, found: str, expected: str = "") -> IntegrityError:
    """Make the error for a model folder whose files were changed or damaged."""
    return IntegrityError(f"model folder {folder}", found, expected, "copy the model again")


def model_folder(config: ModelConfig, weights: bool = True) -> Path:
    """Return the local folder of the model, with or without ``weights``; a hub model is
    downloaded."""
    if config.pocket:
        return pocket_folder()
    if config.path is not None:
        return checked_folder(Path(config.path).expanduser(), weights)
    assert config.hub is not None
    return _hub_folder(config.hub, config.revision, weights)


def pocket_folder() -> Path:
    return Path(__file__).with_name("pocket_weights")


def _hub_folder(hub: str, revision: str | None, weights: bool = True) -> Path:
    from huggingface_hub import snapshot_download

    do = "check the id and revision, or give a local folder if there is no network: model: "
    with reading(f"model {hub!r}", "a download from the hub", do=f"{do}{{path: ./folder}}"):
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
    return checked_folder(Path(folder), weights)


def checked_folder(folder: Path, weights: bool = True) -> Path:
    """Return the folder after a check that it holds a model that can be loaded."""
    for found, is_there in (
        ("no such folder", folder.is_dir()),
        ("no config.json", (folder / "config.json").is_file()),
    ):
        if not is_there:
            do = "give a folder, 'pocket', or a hub id with its owner: owner/name"
            raise UserError(f"model folder {folder}", found, "a Hugging Face folder", do)
    read_json_object(folder / "config.json")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        if pickles:
            found = f"{pickles[0]}, a pickle, which can run code when loaded"
            do = "save it again by model.save_pretrained(folder) on a machine that you trust"
            raise UserError(f"model folder {folder}", found, "*.safetensors", do)
        if weights:
            raise UserError(f"model folder {folder}", "no weights", "*.safetensors")
    return folder


def shapes_folder(model: str, weights: bool = True) -> Path:
    """Find the folder with the ``config.json`` of a local folder, ``pocket`` or a hub id.

    A local folder may lack the weights; a hub model is downloaded, with or without ``weights``.
    """
    local = user_path(model)
    if local.exists():
        return checked_folder(local, weights=False) if local.is_dir() else local
    with reading(f"model {model!r}", "a folder, or a model's name"):
        config = ModelConfig.model_validate(model)
    return model_folder(config, weights)


def check_tuned_folder(folder: Path) -> None:
    """Raise UserError unless the folder of an adapter or checkpoint exists."""
    if not folder.is_dir():
        raise UserError(
            f"adapter {folder}", "no such folder", "that of a PEFT adapter or of a model"
        )
