"""axolotl: one YAML file, in which ``type`` describes the rows."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from rankscope.extensions.trainers.files import TrainerFile

TYPES = "alpaca, chat_template, sharegpt, completion or a mapping with field_instruction"
STAGES = ("rl", "reward_model", "process_reward_model", "pretraining_dataset")
USER_COLUMNS = ("instruction", "input", "output")
READ = ("path", "type", "data_files", "ds_type", "split")  # Keys of a data set


class AxolotlFile(TrainerFile):
    all_targets = ""
    alpaca: ClassVar[list[str]]  # Wordings of ``type: alpaca``, with an input and without

    def _read(self, key: str, value: Any) -> None:
        if key == "gradient_checkpointing":
            value = bool(value)  # 'offload' and the like
        if key != "lora_target_linear" or value:
            super()._read(key, value)

    def _take(self, fact: str, key: str, value: Any) -> None:
        """Take a setting; ``lora_target_linear`` adds all linear layers to the named ones."""
        if fact == "targets" and "all-linear" in (value, self.facts.get(fact)):
            self.sources.pop(fact, None)
            value = "all-linear"
        super()._take(fact, key, value)

    def checked(self, fact: str, value: Any) -> Any:
        is_word = fact == "targets" and value is True
        return "all-linear" if is_word else super().checked(fact, value)

    def problems(self) -> list[str]:
        kind, stages = self.facts.get("adapter"), [k for k in STAGES if self.values.get(k)]
        found = [f"{key}: found another stage, expected supervised fine-tuning" for key in stages]
        if kind not in ("lora", "qlora"):
            rule = f"found {kind or 'full fine-tuning'}, expected lora or qlora"
            found.append(f"adapter: {rule}")
        return found

    def data_sets(self) -> list[dict[str, Any]]:
        sets = self.values.get("datasets", ())
        return [self._data_set(given) for given in sets if isinstance(given, Mapping)]

    def _data_set(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Describe a data set, with the words that axolotl puts around its rows."""
        path, kind = given.get("data_files") or given.get("path"), given.get("type")
        faults = self.unread_keys(given)
        if isinstance(path, list) and len(path) > 1:
            faults.append(f"datasets: found {len(path)} data_files, expected one; give --data")
        self.unknown += [
            f"datasets.{key}: {value}"
            for key, value in given.items()
            if value and not (key in READ or key in self.unread or key.startswith("field"))
        ]
        found: dict[str, Any] = {"path": path[0] if isinstance(path, list) else path}
        if kind == "alpaca":
            found |= {"wordings": (*self.alpaca, "input"), "plain": True}
        elif kind in ("chat_template", "sharegpt"):
            found |= self.conversations_in(given.get("field_messages", "messages"))
        elif kind == "completion":
            found["keys"] = {"fields": {"text": given.get("field", "text")}}
            found["notes"] = ["axolotl cuts long texts into pieces, the study cuts them off"]
        elif isinstance(kind, Mapping):
            names = {column: kind.get(f"field_{column}", column) for column in USER_COLUMNS}
            wordings = [kind.get("format", "{instruction} {input} ")]
            wordings.append(kind.get("no_input_format", "{instruction} "))
            odd = [k for k in kind if k.startswith("system_format") or k == "field_system"]
            faults += [f"datasets: found {key} in type, expected none; give --data" for key in odd]
            pattern = re.compile(rf"\{{({'|'.join(names)})\}}")
            wordings = [pattern.sub(lambda m: f"{{{names[m[1]]}}}", words) for words in wordings]
            start = str(kind.get("system_prompt") or "")
            found["wordings"] = (*(start + wording for wording in wordings), names["input"])
            fields = {"prompt": names["instruction"], "completion": names["output"]}
            found |= {"plain": True, "keys": {"fields": fields}}
        else:
            faults.append(f"datasets: found type {kind}, expected {TYPES}")
        return found | {"faults": faults}

    def changes(self, fact: str, value: Any) -> dict[str, Any]:
        found = super().changes(fact, value)
        if fact != "targets" or not self.values.get("lora_target_linear"):
            return found
        return {"lora_target_linear": False, "lora_target_modules": next(iter(found.values()))}
