"""Bases and adapters: loading, fine-tuning methods, many adapters on one base, devices."""

__all__ = ["adapters", "attention", "base", "checkpoint_reader", "given"]
__all__ += ["grouped_lora", "init_context", "kernels", "load"]
__all__ += ["lora", "low_rank_update", "methods", "model_folder", "output_layer"]
__all__ += ["multi_lora", "parameters", "peft_backend", "quantize", "scaling", "sharding"]
__all__ += ["study_base", "svd_cache"]
"""The modules that other rooms import; the others are parts of these."""
