"""The steps that serve a trained model with vLLM, for card and page.

The ranks of vLLM 0.22 (``MaxLoRARanks``), and the settings that its ``PEFTHelper`` refuses or
ignores, come from its sources.
"""

from collections.abc import Mapping
from typing import Any

from rankscope.report.use_it import BaseSource, UseStep, general_obstacle

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # Values of ``--max-lora-rank`` from 8 on


def obstacle(settings: Mapping[str, Any]) -> str:
    """Say in one sentence why vLLM cannot serve an adapter unmerged; empty if it can."""
    uneven = settings.get("alpha_pattern") or settings.get("rank_pattern")
    if reason := general_obstacle({**settings, "alpha_pattern": uneven}, "vLLM"):
        return reason
    if settings.get("use_dora"):
        return "vLLM does not read DoRA adapters."
    rank = int(settings["r"])
    too_large = f"This adapter is stored with rank {rank}, and vLLM takes at most {RANKS[-1]}."
    return too_large if rank > RANKS[-1] else ""


def serve_step(
    base: BaseSource, settings: Mapping[str, Any] | None, name: str, place: str
) -> UseStep:
    """Return the step that serves an export; arguments as in ``use_steps``, ``place`` quoted."""
    title = f"Serve {'the base' if place == base.shell else 'it'} with vLLM"
    if settings is None:
        return UseStep(title, f"vllm serve {place}")
    if reason := obstacle(settings):
        return UseStep(title, "vllm serve merged", note=f"{reason} Merge it first.")
    limit = next(rank for rank in RANKS if rank >= settings["r"])
    options = f"--enable-lora --max-lora-rank {limit} --lora-modules {name}={place}"
    note = f'Requests name it: "model": "{name}".'
    return UseStep(title, f"vllm serve {base.shell} {options}", note=note)
