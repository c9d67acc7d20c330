"""A training script, read and never run."""

import os

from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

RANK = 16
dataset = load_dataset("json", data_files="pairs.jsonl", split="train")
adapter = LoraConfig(
    r=RANK,  # chosen by habit
    lora_alpha=16,
    lora_dropout=0.0,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
    task_type="CAUSAL_LM",
)
settings = SFTConfig(
    output_dir=os.environ.get("OUT", "out"),
    learning_rate=1e-4,
    max_steps=60,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    warmup_steps=6,
    lr_scheduler_type="linear",
    max_length=64,
    report_to="none",
)
trainer = SFTTrainer(
    model="HuggingFaceTB/SmolLM2-135M",
    args=settings,
    train_dataset=dataset,
    peft_config=adapter,
)
trainer.train()
