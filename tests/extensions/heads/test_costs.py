"""What heads are planned to take."""

from pathlib import Path

import pytest
from pocket_study import small_study

from rankscope.extensions.heads import HEADS
from rankscope.run.costs import CostModel

from ...run.test_costs import H100, trial_of


def test_a_removed_head_runs_from_its_layer_on(tmp_path: Path) -> None:
    """8 heads one by one, then all, in 4 layers: 9 (4 + 3 + 2 + 1) / 4 passes over each task's
    items, one of the intact model, and logits 9 x 4 times, and 4 times of the intact one."""
    heads = {"enabled": True, "items": 8, "ablate": ["pocket_cloze", "pocket_med"]}
    inputs = small_study(tmp_path, analyze={"heads": heads}).check()
    costs = CostModel(inputs, H100)
    cloze, med = (inputs.items[task, "test"][:8] for task in ("pocket_cloze", "pocket_med"))
    logits = sum(item.predicted for item in (*cloze, *med)) * 2 * costs.head
    removing = 23.5 * (costs.scoring(cloze) + costs.scoring(med)) + 16.5 * costs.computing(logits)
    seconds = HEADS.trial_seconds(costs, trial_of(inputs, "lora"))
    assert seconds == pytest.approx(3 * costs.scoring(med) + removing)
