"""Write golden_losses.json anew, where a change of the numbers is meant:

python tests/train/write_golden_losses.py
"""

import json
import sys
from pathlib import Path

import torch

if __name__ == "__main__":
    here = Path(__file__).parent
    sys.path[:0] = [str(here), str(here.parent / "fixtures")]
    from test_loop import GOLDEN, golden_run

    torch.set_num_threads(1)
    made = {
        "command": "python tests/train/write_golden_losses.py",
        "torch": torch.__version__.partition("+")[0],
        "losses": golden_run(),
    }
    GOLDEN.write_text(json.dumps(made, indent=1) + "\n")
