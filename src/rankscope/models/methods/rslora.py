"""rsLoRA (Kalajdzievski, 2312.03732): LoRA whose scaling falls with the root of the rank."""

import math

from rankscope.models.methods.lora import LoraMethod


class RsLoraMethod(LoraMethod):
    name = "rslora"
    label = "rsLoRA"
    summary = "`lora` with s = alpha / sqrt(r) (2312.03732)."
    peft_fields = {"use_rslora": True}
    unserved_by = {
        "llama.cpp": "llama.cpp scales by alpha / r, and this adapter is scaled by alpha / sqrt(r)."
    }

    def rank_scale(self, rank: int) -> float:
        return math.sqrt(rank)
