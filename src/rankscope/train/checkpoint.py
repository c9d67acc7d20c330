"""The resumable state of a group in training: weights, optimizer, loss points, step.

Row order and dropout follow from seed and step. One folder per checkpoint, staged and renamed, so
it is always complete, and hashed, so a damaged one is never resumed. Everything is safetensors and
JSON; nothing is pickled.
"""

import json
import os
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from rankscope.errors import IntegrityError, UserError, reporting_shortages
from rankscope.filesystem import check_in_place, fsync
from rankscope.hashing import SUMS, matches_sums, sums_text
from rankscope.models.sharding import ONE_SHARD, Shards

if TYPE_CHECKING:
    from rankscope.train.trial_state import TrialState

STATE = "state.safetensors"
COUNTERS = "meta.json"
LEAST_PAUSE = 10  # After a slow save, in the time that it took
SLOW_SAVE = 1.0  # Seconds


class GroupCheckpoint:
    """The stored state of a group, which training resumes.

    It holds the number of optimizer steps done, tensors by ``<trial>/<what>/<index>``, and the
    counters and losses by trial. ``seconds`` is the training time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: Shards = ONE_SHARD
        self.file, self.is_writer = STATE, True
        self._saved_at = time.monotonic()  # or opened, before the first save
        self._took = 0.0  # Seconds that this save took

    def of_shards(self, shards: Shards, *, is_sharded: bool) -> "GroupCheckpoint":
        """Return this checkpoint for shards that save and load in step.

        Each shard stores its own part of a sharded state; shard 0 alone stores a state that all
        have.
        """
        checkpoint = GroupCheckpoint(self.folder)
        checkpoint.shards, checkpoint.is_writer = shards, is_sharded or shards.index == 0
        if is_sharded and shards.size > 1:
            checkpoint.file = f"state-{shards.index:03}-of-{shards.size:03}.safetensors"
        return checkpoint

    def is_due(self, seconds: float) -> bool:
        """Whether the last save ended so many seconds ago.

        After a slow save it must be ten times as long ago as the save took, so that saving takes at
        most an eleventh of the time.
        """
        pause = max(seconds, LEAST_PAUSE * self._took if self._took >= SLOW_SAVE else 0)
        return self.shards.agreed(lambda: time.monotonic() - self._saved_at >= pause)()

    def save(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Replace the stored state; a crash or a full disk leaves the old one."""
        check_in_place(self.folder.parents[1])
        began = time.monotonic()
        aside = self.folder / "aside"
        if self.shards.index == 0:
            shutil.rmtree(aside, ignore_errors=True)
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        try:
            with reporting_shortages(self.folder, lambda: f"{size:,} bytes"):
                if self.shards.index == 0:
                    aside.mkdir(parents=True)
                    counters = {"step": step, "trials": meta}
                    (aside / COUNTERS).write_text(json.dumps(counters), encoding="utf-8")
                self.shards.barrier()
                sums = sums_text(aside, [COUNTERS]) if self.shards.index == 0 else ""
                if self.is_writer:
                    save_file(dict(tensors), aside / self.file)
                    sums += sums_text(aside, [self.file])
                sums = "".join(self.shards.collect(sums))
                if self.shards.index == 0:
                    self._publish(aside, step, sums)
        finally:
            if self.shards.index == 0:
                shutil.rmtree(aside, ignore_errors=True)
            self._saved_at = time.monotonic()
            self._took = self._saved_at - began

    def _publish(self, aside: Path, step: int, sums: str) -> None:
        """Put a complete state in place of the old one."""
        (aside / SUMS).write_text(sums, "utf-8")
        for path in (*aside.iterdir(), aside):
            fsync(path)
        # A state of the same step stays until the new one has its name, which sorts later.
        name = f"step-{step:09d}"
        if same := sorted(self.folder.glob(f"{name}*")):
            name += f".{int(same[-1].suffix[1:] or 0) + 1:03d}"
        target = self.folder / name
        os.replace(aside, target)
        fsync(self.folder)
        for old in self.folder.glob("step-*"):
            if old != target:
                _remove_state(old)

    def step(self) -> int:
        """Count the optimizer steps done in the newest state; 0 without a state."""
        names = (sums.parent.name for sums in self.folder.glob(f"step-*/{SUMS}"))
        return max((int(name.removeprefix("step-").split(".")[0]) for name in names), default=0)

    def load(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """Load the newest state; None without one.

        Raises IntegrityError: the state was altered after it was written. Raises UserError: another
        number of shards wrote it.
        """
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            if not (folder / SUMS).is_file():
                continue  # its removal was interrupted
            if self.shards.index == 0 and not matches_sums(folder):
                do = f"to train this group from its beginning, remove {self.folder}"
                raise IntegrityError(folder, "altered files", f"the hashes in its {SUMS}", do)
            if not (folder / self.file).is_file():
                found = ", ".join(sorted(path.name for path in folder.glob("state*")))
                expected = f"{self.file}: 'train.devices' was another number"
                do = f"set it back, or remove {self.folder} to train from the beginning"
                raise UserError(folder, found, expected, do)
            self.shards.barrier()  # shard 0 has found nothing altered
            meta = json.loads((folder / COUNTERS).read_text(encoding="utf-8"))
            return meta["step"], load_file(folder / self.file), meta["trials"]
        return None

    def extract(self, trial_ids: Collection[str], into: "GroupCheckpoint") -> None:
        """Copy the state of some trials, with their share of the seconds by tokens."""
        if (state := self.load()) is None:
            return
        step, all_tensors, all_meta = state
        tensors = {n: t for n, t in all_tensors.items() if n.split("/")[0] in trial_ids}
        meta = {name: value for name, value in all_meta.items() if name in trial_ids}
        tokens = {n: t["num_tokens"] for n, t in all_meta.items() if isinstance(t, dict)}
        share = sum(tokens.get(i, 0) for i in trial_ids) / max(1, sum(tokens.values()))
        into.save(step, tensors, {**meta, "seconds": all_meta["seconds"] * share})

    def remove(self) -> None:
        for state in self.folder.glob("step-*"):
            _remove_state(state)
        shutil.rmtree(self.folder, ignore_errors=True)


def _remove_state(folder: Path) -> None:
    """Remove a state, its list of hashes first: a folder without one counts as no state."""
    (folder / SUMS).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def save_states(
    checkpoint: GroupCheckpoint, states: Sequence["TrialState"], step: int, seconds: float
) -> None:
    tensors = {
        f"{state.spec.trial_id}/{name}": tensor
        for state in states
        for name, tensor in state.tensors().items()
    }
    meta: dict[str, object] = {state.spec.trial_id: state.counters() for state in states}
    checkpoint.save(step, tensors, {**meta, "seconds": seconds})


def restore_states(
    checkpoint: GroupCheckpoint, states: Sequence["TrialState"]
) -> tuple[int, float]:
    """Restore the stored states, if any; return the next step and the seconds already spent."""
    if (stored := checkpoint.load()) is None:
        return 0, 0.0
    step, tensors, meta = stored
    for state in states:
        prefix = f"{state.spec.trial_id}/"
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        state.restore(own, meta[state.spec.trial_id])
    return step, float(meta["seconds"])
