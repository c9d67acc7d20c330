"""Adapters for llama.cpp and Ollama, and for mlx-lm."""

from typing import TYPE_CHECKING, Any

from rankscope.tools.formats import Format

if TYPE_CHECKING:
    from rankscope.report.use_it import UseStep


class Gguf(Format):
    name = "gguf"
    whole_model = "python llama.cpp/convert_hf_to_gguf.py {}"

    def write(self, *adapter: Any) -> "list[UseStep]":
        from rankscope.extensions.formats.gguf import write_gguf

        return write_gguf(*adapter)


class Mlx(Format):
    name = "mlx"
    whole_model = "mlx_lm.convert --hf-path {}"

    def write(self, *adapter: Any) -> "list[UseStep]":
        from rankscope.extensions.formats.mlx import write_mlx

        return write_mlx(*adapter)
