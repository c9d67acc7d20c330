"""Adapters for llama.cpp and Ollama: ``adapter.gguf`` and a ``Modelfile``.

Names, the order of rows and the scaling were read in llama.cpp: ``convert_lora_to_gguf.py``,
``conversion/`` and ``src/llama-adapter.cpp`` of October 2026. Instructions of a ``Modelfile`` are
those of Ollama's ``docs/modelfile.mdx``.
"""

from pathlib import Path

from gguf import MODEL_ARCH_NAMES, GGUFType, GGUFWriter, Keys, get_tensor_name_map
from torch import Tensor
from transformers import PretrainedConfig

from rankscope.data.encode import Encoder
from rankscope.errors import UserError
from rankscope.models.load import load_tokenizer
from rankscope.models.lora import Adapter
from rankscope.models.model_folder import model_folder
from rankscope.records import StudyRecords
from rankscope.report.use_it import CONVERT_MODEL, SENTENCEPIECE, BaseSource, UseStep, folder_name

ADAPTER, BASE = "adapter.gguf", "base.gguf"
INTERLEAVED = {"llama": "llama", "mistral": "llama", "granite": "granite", "smollm3": "smollm3"}
"""Maps transformers' model type to llama.cpp's architecture, for models whose rotary halves differ.
llama.cpp rotates adjacent numbers of a head, while transformers rotates number i with number i + d
/ 2 of a head of d."""
HALVES = {name: name for name in ("gemma", "olmo2", "phi3", "qwen2", "qwen3")}
HALVES |= {"gemma3_text": "gemma3"}
"""Maps the types of models that both programs rotate in halves."""


def write_gguf(
    adapter: Adapter,
    out: Path,
    config: PretrainedConfig,
    study: StudyRecords,
    base: BaseSource,
) -> list[UseStep]:
    """Write a LoRA adapter, float32, and a ``Modelfile`` that puts it on the base.

    Raises UserError: llama.cpp cannot hold the adapter, or the base's architecture is not in
    the tables above.
    """
    name, place = (INTERLEAVED | HALVES).get(config.model_type), "--format gguf"
    if adapter.magnitude or name is None:
        base_type = f"a base of {config.model_type!r}"
        found = "an adapter of DoRA" if adapter.magnitude else base_type
        known = f"LoRA on one of {', '.join([*INTERLEAVED, *HALVES])}"
        do = f"export with --merge, then convert that folder: {CONVERT_MODEL.format('FOLDER')}"
        raise UserError(place, found, known, do)
    architecture = next(key for key, value in MODEL_ARCH_NAMES.items() if value == name)
    names = get_tensor_name_map(architecture, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    writer = GGUFWriter(out / ADAPTER, name)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    # llama.cpp scales by alpha over the rank of each module, whatever scaling was trained. B
    # makes up for it in modules of other ranks.
    writer.add_float32(Keys.Adapter.LORA_ALPHA, adapter.scaling * adapter.rank)
    for module, a in adapter.a.items():
        if (stored := names.get_name(module)) is None:
            raise UserError(place, repr(module), f"modules that {name!r} has in llama.cpp")
        b, leaf = adapter.b[module].detach() * (len(a) / adapter.rank), module.split(".")[-1]
        if leaf in heads and config.model_type in INTERLEAVED:
            b = interleaved(b, heads[leaf])
        writer.add_tensor(f"{stored}.weight.lora_a", a.detach().numpy())
        writer.add_tensor(f"{stored}.weight.lora_b", b.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    text = modelfile(study, adapter.name, base)
    (out / "Modelfile").write_text(text, encoding="utf-8")
    return _steps(base, folder_name(adapter.name))


def interleaved(b: Tensor, heads: int) -> Tensor:
    """Put rows i and i + d / 2 of each head of d rows side by side; ``b`` is (heads * d, r)."""
    return b.reshape(heads, 2, -1, b.shape[1]).transpose(1, 2).reshape(b.shape).contiguous()


def modelfile(study: StudyRecords, task: str, base: BaseSource) -> str:
    """Write Ollama's ``Modelfile``, with ends of answers and the system text that all rows
    share."""
    tokenizer = load_tokenizer(model_folder(study.config.model, weights=False))
    encoder = Encoder(tokenizer, study.model.prompt_format, None)
    stops = [str(tokenizer.convert_ids_to_tokens(i)) for i in sorted(encoder.stop_ids)]
    stops += next(t for t in study.config.tasks if t.name == task).stop
    # Ollama has templates of its own, which it finds by the chat template in base.gguf.
    template = "# Compare Ollama's template with the base's: ollama show --template NAME"
    if encoder.prompt_format == "plain":
        template = 'TEMPLATE """{{ .Prompt }}"""'
    source = f"# {base.text}, converted by llama.cpp's convert_hf_to_gguf.py"
    lines = [source, f"FROM ./{BASE}", f"ADAPTER ./{ADAPTER}", template]
    lines += [f"PARAMETER stop {quoted(text)}" for text in stops]
    if system := study.task(task).system:
        lines.append(f"SYSTEM {quoted(system)}")
    return "\n".join([*lines, ""])


def quoted(text: str) -> str:
    """Quote a text for an instruction. Raises UserError: it holds Ollama's mark of its end."""
    if '"""' in text:
        do = "export the adapter without --format and write its Modelfile by hand"
        raise UserError("--format gguf", f'a text with """, {text[:60]!r}', "one without it", do)
    return f'"""{text}"""'


def _steps(base: BaseSource, name: str) -> list[UseStep]:
    folder = "base" if base.hub_name else base.shell
    fetch = f"hf download {base.shell} --local-dir {folder}\n" if base.hub_name else ""
    convert = f"{fetch}{CONVERT_MODEL.format(folder)} --outfile {BASE}"
    note = f"{base.note} {SENTENCEPIECE}" if base.python else SENTENCEPIECE
    return [
        UseStep("Convert the base", convert, note=note),
        UseStep("Run it with llama.cpp", f"llama-cli -m {BASE} --lora {ADAPTER}"),
        UseStep("Run it with Ollama", f"ollama create {name} -f Modelfile\nollama run {name}"),
    ]
