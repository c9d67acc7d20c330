"""Merge an adapter into its base: a full model folder that plain transformers loads."""

from pathlib import Path

from rankscope.errors import UserError
from rankscope.hashing import weights_sha256
from rankscope.models.load import load_tokenizer
from rankscope.models.model_folder import model_folder
from rankscope.models.parameters import read_model_config
from rankscope.records import StudyRecords


def merge_adapter(study: StudyRecords, adapter: Path, out: Path) -> None:
    """Write the study's base with an adapter merged into it, and the tokenizer, to ``out``.

    The sum is computed in float32 and stored in the dtype in which the study scored the model.
    Raises UserError: the base is not the study's any more, or the adapter cannot be merged.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = model_folder(study.config.model)
    if weights_sha256(folder) != study.model.sha256:
        raise UserError(
            f"{folder}: the base's weights are not those of the study (sha256 "
            f"{study.model.sha256[:12]}...), so the merged model would differ from the one that "
            "was scored; restore them"
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        config=read_model_config(folder),
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        attn_implementation="eager",
        trust_remote_code=False,
    )
    tuned = PeftModel.from_pretrained(model, str(adapter))
    if not hasattr(tuned.base_model, "merge_and_unload"):
        kind = getattr(tuned.peft_config["default"].peft_type, "value", "this method")
        raise UserError(f"--merge: PEFT cannot merge {kind}; export the adapter without --merge")
    head = tuned.get_output_embeddings()
    if getattr(model.config, "tie_word_embeddings", False) and hasattr(head, "base_layer"):
        raise UserError(
            "--merge: the adapter changes the output layer, which shares its weights with the "
            "input embedding; export the adapter without --merge"
        )
    merged = tuned.merge_and_unload(safe_merge=True)
    merged.to(getattr(torch, study.model.dtype)).save_pretrained(out)
    load_tokenizer(folder).save_pretrained(out)
