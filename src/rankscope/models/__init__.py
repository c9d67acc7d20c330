"""Bases and adapters: loading, fine-tuning methods, many adapters on one base, devices."""

__all__ = ["adapters", "attention", "base", "checkpoint_reader", "given", "grouped_lora"]
__all__ += ["init_context", "kernels", "load", "lora", "low_rank_update", "methods", "model_folder"]
__all__ += ["multi_lora", "output_layer", "parameters", "peft_backend", "quantize", "sharding"]
__all__ += ["study_base", "svd_cache"]
"""The modules that other rooms import; the others are parts of these."""
