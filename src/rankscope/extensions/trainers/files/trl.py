"""TRL: a file for ``trl sft --config``, values of its classes, or a script that calls them."""

import re
from collections.abc import Mapping
from typing import Any

from rankscope.extensions.trainers.documents import TrainerDocument
from rankscope.extensions.trainers.files import TrainerFile

OF_COMMAND = {"rank": 16, "alpha": 32.0, "dropout": 0.05}  # Defaults of ModelConfig
RATE_OF_TRANSFORMERS = 5e-5  # Default of TrainingArguments
RUNS = ("SFTConfig", "TrainingArguments", "UnslothTrainingArguments")
OF_ADAPTER = r"(LoraConfig|Fast\w*Model\.get_peft_model)\."
OF_RUN = r"(?!Lora|BitsAndBytes)\w+(Config|Arguments)\."
ROW_CHANGES = (
    *("map", "filter", "select", "shuffle", "train_test_split", "rename_column", "rename_columns"),
    *("standardize_sharegpt", "standardize_data_formats", "concatenate_datasets"),
)
"""Calls that change rows."""
OTHER_STAGE = r"([A-Z]*(DPO|PO|RLOO|GKD|PRM|BCO|KTO)|OnlineDPO|Reward)(Config|Trainer)\..*"
BUILDERS = ("json", "csv", "parquet", "text")


class TrlFile(TrainerFile):
    def __init__(self, document: TrainerDocument) -> None:
        super().__init__(document)
        if document.style != "python" and "r" not in self.values:
            self.facts |= {k: v for k, v in OF_COMMAND.items() if k not in self.sources}
        if "TrainingArguments" in document.called and "lr" not in self.sources:
            self.facts["lr"] = RATE_OF_TRANSFORMERS

    def problems(self) -> list[str]:
        keys = [*self.document.values, *self.document.computed]
        others = [key for key in keys if re.fullmatch(OTHER_STAGE, key)]
        found = [f"{key}: found another stage, expected SFTConfig" for key in others[:1]]
        is_code, values = self.document.style == "python", self.document.values
        if is_code and not self.document.called & {*RUNS}:
            found.append(f"found no call of {', '.join(RUNS)}, expected the settings of a run")
        # `trl sft` trains the whole model without `use_peft`; LoraConfig's own values have `r`.
        makes_one = any(re.match(OF_ADAPTER, key) for key in self.document.spans)
        has_adapter = values.get("use_peft", makes_one if is_code else "r" in values)
        return found + ["found full fine-tuning, expected a LoRA adapter"] * (not has_adapter)

    def new_key(self, fact: str) -> str:
        """Return a key of ``trl sft``, or one of the class whose values or call the file has."""
        if self.document.style != "python" and "r" not in self.values:
            return super().new_key(fact)
        name = [key for key, place in self.keys.items() if place == fact][-1]
        kind = OF_RUN if fact == "lr" else OF_ADAPTER
        near = next((key for key in self.document.spans if re.match(kind, key)), "")
        return f"{near.rpartition('.')[0]}.{name}".strip(".")

    def data_sets(self) -> list[dict[str, Any]]:
        rows = {
            k.rpartition(".")[2]: v for k, v in self.values.items() if self.setting(k) == "rows"
        }
        if "dataset_name" in rows:
            rows["path"] = rows["dataset_name"]
        rows["split"] = rows.get("split") or rows.get("dataset_train_split", "train")
        code = [key for key in self.document.computed if key.endswith("formatting_func")]
        faults = [f"{key}: found code that makes rows, which is not run; give them with --data"
                  for key in code]  # fmt: skip
        changed = sorted(self.document.called & {*ROW_CHANGES})
        faults += [f"rows: found a call of {call}, which is not run; give them with --data"
                   for call in changed]  # fmt: skip
        sets = rows.get("datasets") or [rows]
        column = rows.get("dataset_text_field", "text")
        return [self._data_set(given, column, faults) for given in sets if "path" in given]

    def _data_set(self, given: Mapping[str, Any], column: str, faults: list[str]) -> dict[str, Any]:
        files = given.get("data_files")
        files = files.get("train") if isinstance(files, Mapping) else files
        path = files if files and given["path"] in BUILDERS else given["path"]
        known = {**given, "data_files": files if path != files else None}
        if isinstance(path, list) and len(path) > 1:
            faults = [*faults, f"rows: found {len(path)} files, expected one; give --data"]
        return {
            "path": path[0] if isinstance(path, list) else path,
            "keys": {} if column == "text" else {"fields": {"text": column}},
            "faults": faults + self.unread_keys(known),
        }

    def labels(self, row: Mapping[str, Any]) -> str:
        """Return the tokens that carry loss: TRL trains on all of a conversation unless told
        otherwise."""
        if "prompt" in row:
            return "all" if self.facts.get("completion_only") is False else "completion"
        is_chat = "messages" in row or "conversations" in row
        return "all" if is_chat and not self.facts.get("assistant_only") else "completion"

    def is_plain(self, row: Mapping[str, Any]) -> bool:
        return isinstance(row.get("prompt"), str) or row.get("text") is not None

    def notes(self, row: Mapping[str, Any]) -> list[str]:
        prompt, completion = row.get("prompt"), row.get("completion")
        if isinstance(prompt, str) and isinstance(completion, str):
            if not (prompt[-1:].isspace() or completion[:1].isspace()):
                return ["a space is put between prompt and completion, TRL puts nothing"]
            return ["prompt and completion are tokenized apart: TRL may merge them in one token"]
        if self.labels(row) == "all":
            return ["every token is learned, as in TRL, but for those after the last answer's end"]
        return []
