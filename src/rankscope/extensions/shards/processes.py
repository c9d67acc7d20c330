"""The processes of shards: shard 0 starts, watches and ends the others, which do what it announces.

Shard 0 is the worker itself. If another shard dies, shard 0 ends as if it had been killed. The unit
is then lost work: its executor starts it again, and it continues from its checkpoint.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rankscope.config.study import TrainConfig
from rankscope.data.encode import EncodedRow
from rankscope.device import release_freed_memory
from rankscope.errors import (
    OutOfMemory,
    RankscopeError,
    is_out_of_memory,
    out_of_memory_message,
)
from rankscope.extensions.shards.sharding import ManyShards
from rankscope.models.load import pass_one_token
from rankscope.models.sharding import Shards
from rankscope.records import ModelRecord, TrialSpec
from rankscope.run.begin import prepare_process
from rankscope.train.checkpoint import GroupCheckpoint
from rankscope.train.loop import train_group

POLL_SHARDS_SECONDS = 0.2
END_SECONDS = 30.0  # How long shards may take to end
END_ALARM_SECONDS = 2  # How long a shard whose shard 0 is gone may take to remove where they met
FOREVER = timedelta(days=365)
"""Limit for a shard that waits for orders while shard 0 scores; the life of shard 0 is watched
instead."""
COLLECTIVE_LIMIT = timedelta(hours=2)
"""Limit for joint computations of shards: if a GPU hangs, the unit ends and starts again. Orders,
spectra and the waits around a checkpoint have no limit."""
FOLLOW = ("-P", "-c", "from rankscope.extensions.shards.processes import follow; follow()")


@contextmanager
def started_shards(size: int, device: torch.device) -> Iterator[Shards]:
    """Start the other shards on this machine, and yield shard 0."""
    with tempfile.TemporaryDirectory(prefix="rankscope-") as folder:
        store, closing = str(Path(folder) / "store"), threading.Event()
        own_id = str(os.getpid())
        give_up = partial(break_off, folder)
        others = [
            subprocess.Popen(
                [sys.executable, *FOLLOW, str(index), str(size), device.type, store, own_id],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal reaches shard 0 alone
            )
            for index in range(1, size)
        ]
        threading.Thread(target=watch, args=(others, closing, give_up), daemon=True).start()
        try:
            shards = join(0, size, device, store)
            shards.break_off = give_up  # type: ignore[method-assign]
            yield shards
            closing.set()
            shards.announce("end")
            dist.destroy_process_group()
        except Exception as error:
            # If a shard that died is the cause, the watching thread reports it and ends this
            # process.
            if not isinstance(error, RankscopeError):
                time.sleep(5 * POLL_SHARDS_SECONDS)
            raise
        finally:
            end(others, closing)


def watch(
    others: Sequence["subprocess.Popen[bytes]"],
    closing: threading.Event,
    give_up: Callable[[str], None],
) -> None:
    """End this process if another shard ends too early, because the others would wait for it."""
    while not closing.wait(POLL_SHARDS_SECONDS):
        for index, process in enumerate(others, 1):
            if (code := process.poll()) is not None and not closing.is_set():
                how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                shortage = "out of memory: " if code == OutOfMemory.exit_code else ""
                give_up(f"{shortage}shard {index} of {len(others) + 1} {how}")


def break_off(folder: str, reason: str) -> None:
    """End this process as if it were killed, which its executor takes for lost work.

    ``folder`` is where shards meet.
    """
    print(f"error: {reason}; the same command continues", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGKILL)


def end(others: Sequence["subprocess.Popen[bytes]"], closing: threading.Event) -> None:
    """Wait for shards that were asked to end, and kill others, because they store nothing."""
    patience = END_SECONDS if closing.is_set() else 0.0
    closing.set()
    for process in others:
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        process.kill()
        process.wait()


def join(index: int, size: int, device: torch.device, store: str) -> ManyShards:
    """Meet the other shards through the file ``store``, which nobody else can open."""
    if device.type == "cuda":
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=dist.FileStore(store, size),  # type: ignore[attr-defined]
        rank=index,
        world_size=size,
        timeout=COLLECTIVE_LIMIT,
    )
    # Announcements have their own group, so that none is taken for a part of the products.
    return ManyShards(index, size, device, dist.new_group(backend="gloo", timeout=FOREVER))


# --- the other shards


def follow() -> None:
    index, size, device, store, parent = sys.argv[1:]
    threading.Thread(target=_end_with, args=(int(parent), Path(store)), daemon=True).start()
    prepare_process()
    shards = join(int(index), int(size), torch.device(device), store)
    shards.handlers = {
        "shard": partial(shard, shards),
        "forward": partial(forward, shards),
        "gather": shards.gather,
        "train": partial(train, shards),
        "call": partial(call, shards),
    }
    try:
        shards.serve(until="end")
        dist.destroy_process_group()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: {out_of_memory_message(error)}", file=sys.stderr, flush=True)
        os._exit(OutOfMemory.exit_code)


def _end_with(parent: int, store: Path) -> None:
    """End this process when shard 0 is gone, and remove the folder that it can no longer remove."""
    while os.getppid() == parent:
        time.sleep(POLL_SHARDS_SECONDS)
    # The main thread may be about to open the store. If its folder is gone then, PyTorch waits for
    # it without letting another thread run; the alarm's signal ends the process all the same.
    signal.alarm(END_ALARM_SECONDS)
    while store.parent.exists():  # the main thread may put the store there meanwhile
        shutil.rmtree(store.parent, ignore_errors=True)
    os._exit(1)


def shard(
    shards: ManyShards, replicates: bool, name: str, record: ModelRecord, folder: Path
) -> None:
    shards.replicates = replicates
    shards.hold(name, None, None, record, folder)


def call(shards: ManyShards, function: Callable[..., object], *args: object) -> None:
    release_freed_memory()  # training left blocks of other sizes
    function(shards.models["base"], *args)


@torch.no_grad()
def forward(shards: ManyShards, name: str) -> None:
    pass_one_token(shards.models[name])


def train(
    shards: ManyShards,
    trials: Sequence[TrialSpec],
    rows: Sequence[EncodedRow],
    config: TrainConfig,
    folder: Path,
    options: Mapping[str, Any],
) -> None:
    """Take this shard's part in the training of a group; ``options`` go to the loop."""
    base = shards.models["base"]
    checkpoint = GroupCheckpoint(folder).of_shards(shards, is_sharded=trials[0].is_full)
    try:
        stop = shards.agreed(lambda: False)  # shard 0 decides
        train_group(base, trials, rows, config, checkpoint=checkpoint, should_stop=stop, **options)
    except RankscopeError:
        pass  # shard 0 meets the same
    finally:
        base.multi_lora.clear()
