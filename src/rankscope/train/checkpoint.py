"""The resumable state of a group in training: weights, optimizer, loss points, step.

Row order and dropout follow from seed and step. One folder per checkpoint, staged and renamed, so
it is always complete, and hashed, so a damaged one is never resumed. Everything is safetensors and
JSON; nothing is pickled.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankscope.filesystem import check_in_place, fsync
from rankscope.hashing import sha256_file
from rankscope.shortage import is_memory_fault, reporting_shortages

STATE = "state.safetensors"
COUNTERS = "meta.json"


@dataclass(frozen=True, slots=True)
class GroupState:
    step: int  # Optimizer steps done
    tensors: Mapping[str, Tensor]  # ``<trial>/<what>/<index>`` -> tensor
    meta: Mapping[str, Any]  # ``<trial>`` -> counters and losses; ``seconds`` -> training time


class GroupCheckpoint:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: GroupState) -> None:
        """Replace the stored state; a crash or a full disk leaves the old one."""
        check_in_place(self.folder.parents[1])
        aside = self.folder / "aside"
        shutil.rmtree(aside, ignore_errors=True)
        target = self.folder / f"step-{state.step:09d}"
        size = sum(t.numel() * t.element_size() for t in state.tensors.values())
        try:
            with reporting_shortages(self.folder, lambda: f"{size:,} bytes"):
                aside.mkdir(parents=True)
                save_file(dict(state.tensors), aside / STATE)
                digest = _sha256(aside / STATE, state.step, state.meta)
                counters = {"step": state.step, "trials": state.meta, "sha256": digest}
                (aside / COUNTERS).write_text(json.dumps(counters), encoding="utf-8")
                for path in (aside / STATE, aside / COUNTERS, aside):
                    fsync(path)
                shutil.rmtree(target, ignore_errors=True)
                os.replace(aside, target)
                fsync(self.folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        for old in self.folder.glob("step-*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)

    def load(self) -> GroupState | None:
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            try:
                meta = json.loads((folder / COUNTERS).read_text(encoding="utf-8"))
                if _sha256(folder / STATE, meta["step"], meta["trials"]) == meta["sha256"]:
                    return GroupState(meta["step"], load_file(folder / STATE), meta["trials"])
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                if is_memory_fault(error):
                    raise
                # training starts from an earlier state, or anew
        return None

    def extract(self, trial_ids: Collection[str], into: "GroupCheckpoint") -> None:
        """Copy the state of some trials and their share of the seconds, by tokens."""
        state = self.load()
        if state is None:
            return
        tensors = {n: t for n, t in state.tensors.items() if n.split("/")[0] in trial_ids}
        meta = {name: value for name, value in state.meta.items() if name in trial_ids}
        tokens = {n: t["num_tokens"] for n, t in state.meta.items() if isinstance(t, dict)}
        share = sum(tokens.get(i, 0) for i in trial_ids) / max(1, sum(tokens.values()))
        meta["seconds"] = state.meta["seconds"] * share
        into.save(GroupState(state.step, tensors, meta))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _sha256(state_file: Path, step: int, meta: Mapping[str, Any]) -> str:
    """Of the tensors' file and the counters' JSON text, which is the same after a round trip."""
    text = json.dumps([sha256_file(state_file), step, meta])
    return hashlib.sha256(text.encode()).hexdigest()
