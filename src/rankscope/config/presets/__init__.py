"""Ready-made study files: ``rankscope init`` writes them, ``rankscope quickstart`` runs one.

Each preset is one commented YAML file in this folder, so that the text that is written, run and
tested is the same.
"""

PRESETS: dict[str, str] = {
    "default": "your own rows: five LoRA ranks and full fine-tuning, and what is lost",
    "pocket": "the built-in study: offline, minutes on a laptop",
    "paper": "the whole protocol of arXiv 2512.15634 on one base model",
    "rank-sanity": "ranks 8, 32 and 64: does any beat the untuned model?",
    "retention-probe": "LoRA and full fine-tuning: what do they forget on general benchmarks?",
    "cross-domain": "train on A, test on B, and vice versa",
    "alpha": "alpha varied independently of the rank, and its effect on the weights",
    "learning-rate": "learning rates from 1e-5 to 1e-3 at three ranks, and for full fine-tuning",
    "high-rank": "ranks to 512, scaled by alpha / r and by alpha / sqrt(r)",
    "methods": "LoRA variants, one PEFT method and full fine-tuning",
    "base-vs-instruct": "the same study on a base model and on its instruction-tuned twin",
    "mitigation": "replay, KL to the base, decay and early stopping, against a scaled-down update",
    "heads": "which attention heads change, and the effect of removing each",
}
"""Purpose of each preset, by name."""

ON_POCKET = "on_pocket"  # Folder of the presets' variants for the pocket model
