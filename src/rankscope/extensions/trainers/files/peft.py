"""PEFT: the folder of a finished adapter, with the trainer's state if it is beside it."""

from collections.abc import Mapping
from typing import Any

from rankscope.extensions.trainers.documents import TrainerDocument
from rankscope.extensions.trainers.files import TrainerFile
from rankscope.filesystem import read_json_object

LARGEST_RATE = "largest learning_rate"  # Among the logged rates
OF_STATE = ("num_train_epochs", "max_steps", "train_batch_size")


class PeftFile(TrainerFile):
    def __init__(self, document: TrainerDocument) -> None:
        state = document.path / "trainer_state.json"
        if document.path.is_dir() and state.is_file():
            values = read_json_object(state)
            document.values |= {name: values[name] for name in OF_STATE if name in values}
            entries = values.get("log_history", [])
            rates = [entry["learning_rate"] for entry in entries if "learning_rate" in entry]
            document.values |= {LARGEST_RATE: max(rates)} if rates else {}
        # Most of its keys are false or empty: options that were not used.
        document.values = {k: v for k, v in document.values.items() if v is not False}
        super().__init__(document)
        self.facts["gradient_accumulation"] = 1

    def notes(self, row: Mapping[str, Any]) -> list[str]:
        return ["gradient accumulation is not stored with an adapter: 1 is assumed"]

    def problems(self) -> list[str]:
        kind = self.facts.get("adapter")
        return [] if kind == "LORA" else [f"peft_type: found {kind}, expected LORA"]
