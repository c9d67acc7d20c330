"""LLaMA-Factory: one YAML or JSON file; dataset_info.json describes its data sets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankscope.extensions.trainers.files import TrainerFile
from rankscope.filesystem import read_json_object

INFO = "dataset_info.json"
INFO_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
EXPECTED = {"stage": "sft", "adapter": "lora"}


class LlamaFactoryFile(TrainerFile):
    all_targets = "all"

    def checked(self, fact: str, value: Any) -> Any:
        if fact != "four_bit":
            return super().checked(fact, value)
        if value != 4:
            raise ValueError("4, the only quantization of a study")
        return True

    def problems(self) -> list[str]:
        wrong = [fact for fact, rule in EXPECTED.items() if self.facts[fact] != rule]
        return [
            f"{self.sources[fact]}: found {self.facts[fact]}, expected {EXPECTED[fact]}"
            for fact in wrong
        ]

    def data_sets(self) -> list[dict[str, Any]]:
        names = self.values.get("dataset", [])
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
        places = (f"{self.values.get('dataset_dir', 'data')}/{INFO}", INFO)
        file = next((path for place in places if (path := self.path_of(place))), None)
        if names and file is None:
            return [{"faults": [f"dataset: found no {places[0]}, expected it to have {names}"]}]
        described = read_json_object(file) if file else {}
        return [self._data_set(name, described.get(name), file or Path()) for name in names]

    def _data_set(self, name: str, given: Any, file: Path) -> dict[str, Any]:
        if not isinstance(given, Mapping):
            return {"faults": [f"dataset: found no {name} in {file}, expected it there"]}
        columns = given.get("columns") or INFO_COLUMNS  # All of them, if any is named
        path = given.get("file_name") or given.get("hf_hub_url")
        faults = self.unread_keys(given)
        odd = [column for column in columns if column not in (*INFO_COLUMNS, "messages")]
        faults += [f"{file}: {name}: found the column {c}, expected none" for c in odd]
        local = file.parent / str(path)
        found = {"path": str(local) if local.exists() else path, "faults": faults}
        if given.get("formatting", "alpaca") == "alpaca":
            prompt, query, response = (columns.get(column) for column in INFO_COLUMNS)
            both = f"{{{prompt}}}\n{{{query}}}" if query else f"{{{prompt}}}"
            found["wordings"] = (both, f"{{{prompt}}}", query)
            if not (prompt and response):
                faults.append(f"{file}: {name}: found columns {columns}, expected prompt, response")
            fields = {"prompt": prompt, "completion": response}
            return found | {"keys": {"fields": fields}}
        return found | self.conversations_in(columns.get("messages", "conversations"))

    def changes(self, fact: str, value: Any) -> dict[str, Any]:
        """Translate a setting; names of modules are one text, with commas."""
        found = super().changes(fact, value).items()
        return {key: ",".join(new) if isinstance(new, list) else new for key, new in found}
