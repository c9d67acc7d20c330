"""``inspect`` never holds a checkpoint whole: shards are read a matrix at a time."""

from pathlib import Path

import torch
from launcher import Launcher
from transformers import LlamaConfig, LlamaForCausalLM

MEGABYTE = 2**20

# In a process of its own, since a limit cannot be taken back. RLIMIT_DATA bounds what it allocates
# and the files that it has mapped. The first inspection loads every library; what the second takes
# on top is bounded.
LIMITED = """
import resource, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from rankscope.tools.inspect import inspect
base, tuned, small, room = *sys.argv[1:4], int(sys.argv[4])
torch.set_num_threads(1)
inspect(small, small)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
limit = int(status["VmData"].split()[0]) * 1024 + room
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
found = inspect(base, tuned)
print(len(found.trials[0].analyses[0].matrices))
try:
    files = [load_file(file) for file in Path(tuned).glob("*.safetensors")]
    held = [tensor.clone() for file in files for tensor in file.values()]
except (MemoryError, RuntimeError):
    print("too large to hold")
"""


def saved(folder: Path, hidden: int, inner: int, seed: int, shard: str) -> int:
    """A Llama of eight layers in shards; its bytes."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=8,
        num_attention_heads=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size=shard)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_a_checkpoint_in_shards_is_never_held_whole(launcher: Launcher, tmp_path: Path) -> None:
    """100 MB a side in shards of two matrices; a matrix has 4 MB, its difference in float64 8."""
    size = saved(tmp_path / "base", 64, 16384, 0, "9MB")
    saved(tmp_path / "tuned", 64, 16384, 1, "9MB")
    saved(tmp_path / "small", 64, 1024, 0, "1MB")
    assert size > 95 * MEGABYTE
    assert len(list((tmp_path / "tuned").glob("*.safetensors"))) > 10
    folders = [tmp_path / name for name in ("base", "tuned", "small")]
    cache = {"RANKSCOPE_CACHE": str(tmp_path / "cache")}
    launcher.start(*folders, 80 * MEGABYTE, code=LIMITED, environment=cache)
    done = launcher.outcome()
    assert done.code == 0, done.err[-2000:]
    # Seven matrices in each of eight layers; and holding either side would break the limit.
    assert done.out.split("\n")[:2] == ["56", "too large to hold"]
