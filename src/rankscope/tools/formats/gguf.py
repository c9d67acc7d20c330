"""Adapters for llama.cpp and Ollama: ``adapter.gguf`` and a ``Modelfile``.

Names, the order of rows and the scaling were read in llama.cpp: ``convert_lora_to_gguf.py``,
``conversion/`` and ``src/llama-adapter.cpp`` of October 2026. Instructions of a ``Modelfile`` are
those of Ollama's ``docs/modelfile.mdx``.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from rankscope.errors import UserError
from rankscope.report.use_it import CONVERT_MODEL, SENTENCEPIECE, BaseSource, UseStep, folder_name

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

    from rankscope.models.lora import Adapter
    from rankscope.records import StudyRecords

whole_model = CONVERT_MODEL
ADAPTER, BASE = "adapter.gguf", "base.gguf"
INTERLEAVED = {"llama": "llama", "mistral": "llama", "granite": "granite", "smollm3": "smollm3"}
"""transformers' model type -> llama.cpp's architecture, if llama.cpp rotates neighbouring numbers
of a head, while transformers rotates number i with number i + d / 2 of a head of d."""
HALVES = {name: name for name in ("gemma", "gemma2", "olmo2", "phi3", "qwen2", "qwen3")}
HALVES |= {"gemma3_text": "gemma3"}
"""The same, if both rotate halves."""


def write(
    adapter: "Adapter",
    out: Path,
    config: "PretrainedConfig",
    study: "StudyRecords",
    base: BaseSource,
) -> list[UseStep]:
    """Write a LoRA adapter, float32, and a ``Modelfile`` that puts it on the base.

    llama.cpp scales every module by alpha / r of its own rank r. Alpha is chosen so that modules of
    the adapter's rank are scaled as trained (alpha / sqrt(r) for rsLoRA); the B of others absorbs
    the rest.
    """
    from gguf import MODEL_ARCH_NAMES, GGUFType, GGUFWriter, Keys, get_tensor_name_map

    name = (INTERLEAVED | HALVES).get(config.model_type)
    if adapter.magnitude or name is None:
        found = "an adapter of DoRA" if adapter.magnitude else f"a base of {config.model_type!r}"
        known = f"LoRA on one of {', '.join([*INTERLEAVED, *HALVES])}"
        do = f"export with --merge, then convert that folder: {whole_model.format('FOLDER')}"
        raise UserError("--format gguf", found, known, do)
    (architecture,) = (key for key, value in MODEL_ARCH_NAMES.items() if value == name)
    names = get_tensor_name_map(architecture, config.num_hidden_layers)
    heads_of = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    writer = GGUFWriter(out / ADAPTER, name)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, adapter.scaling * adapter.rank)
    for module, a in adapter.a.items():
        stored = names.get_name(module)
        if stored is None:
            raise UserError(
                "--format gguf", f"{module!r}", f"modules that {name!r} has in llama.cpp"
            )
        b = adapter.b[module].detach() * (len(a) / adapter.rank)
        leaf = module.rpartition(".")[2]
        if leaf in heads_of and config.model_type in INTERLEAVED:
            b = interleaved(b, heads_of[leaf])
        writer.add_tensor(f"{stored}.weight.lora_a", a.detach().numpy())
        writer.add_tensor(f"{stored}.weight.lora_b", b.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    text = modelfile(study, adapter.name, base)
    (out / "Modelfile").write_text(text, encoding="utf-8")
    folder = "base" if base.hub_name else base.shell
    fetch = f"hf download {base.shell} --local-dir {folder}\n" if base.hub_name else ""
    convert = f"{fetch}{whole_model.format(folder)} --outfile {BASE}"
    made = folder_name(adapter.name)
    return [
        UseStep("Convert the base", convert, note=f"{base.note} {SENTENCEPIECE}".strip()),
        UseStep("Run it with llama.cpp", f"llama-cli -m {BASE} --lora {ADAPTER}"),
        UseStep("Run it with Ollama", f"ollama create {made} -f Modelfile\nollama run {made}"),
    ]


def interleaved(b: "Tensor", heads: int) -> "Tensor":
    """Rows i and i + d / 2 of each head of d rows, side by side; ``b`` is (heads * d, r)."""
    return b.reshape(heads, 2, -1, b.shape[1]).transpose(1, 2).reshape(b.shape).contiguous()


def modelfile(study: "StudyRecords", task: str, base: BaseSource) -> str:
    """Ollama's ``Modelfile``: the system text of the rows and the ends of answers, if there are."""
    from rankscope.data.encode import Encoder
    from rankscope.models.load import load_tokenizer
    from rankscope.models.model_folder import model_folder

    tokenizer = load_tokenizer(model_folder(study.config.model, weights=False))
    encoder = Encoder(tokenizer, study.model.prompt_format, None)
    settings = next(t for t in study.config.tasks if t.name == task)
    stops = [str(tokenizer.convert_ids_to_tokens(i)) for i in sorted(encoder.stop_ids)]
    lines = [f"# {base.text}, converted by llama.cpp's convert_hf_to_gguf.py", f"FROM ./{BASE}"]
    lines.append(f"ADAPTER ./{ADAPTER}")
    if encoder.prompt_format == "plain":
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    else:
        lines.append(
            "# Ollama finds a template by the chat template in base.gguf; compare the two:"
        )
        lines.append("# ollama show --template NAME")
    lines += [f"PARAMETER stop {quoted(text)}" for text in (*stops, *(settings.stop or ()))]
    if system := study.task(task).system:
        lines.append(f"SYSTEM {quoted(system)}")
    return "\n".join([*lines, ""])


def quoted(text: str) -> str:
    """A text as an instruction takes it. Raises UserError: it holds Ollama's mark of its end."""
    if '"""' in text:
        do = "export the adapter without --format and write its Modelfile by hand"
        raise UserError("--format gguf", f'a text with """, {text[:60]!r}', "one without it", do)
    return f'"""{text}"""'
