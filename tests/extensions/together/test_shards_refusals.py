"""What several devices cannot do of other extensions; clusters, where the devices are elsewhere."""

from pathlib import Path

import pytest
from pocket_study import SETTINGS, changed, small_study

from rankscope.errors import UserError

from ...run.test_refusals import arm
from ..conftest import refusals
from ..shards.test_refusals import on_two

test_what_cannot_run_is_refused = refusals(
    (on_two(analyze={"heads": {"enabled": True}}), "found analyze.heads.enabled"),
    (on_two(evaluate={"scales": [0.5]}), "found variants of full fine-tuning"),
    (on_two(**changed("train", devices=2, kernels="compiled")), "found kernels: compiled, which"),
)


def test_a_login_node_counts_no_devices(tmp_path: Path) -> None:
    """Units of a cluster run where the devices are; what the code lacks is refused all the same."""
    two = on_two(device="auto", evaluate=SETTINGS["evaluate"])
    with pytest.raises(UserError, match="found dropout"):
        small_study(tmp_path, **two | arm(dropout=0.1), executor="slurm").plan()
    for executor in ("slurm", {"ray": {"address": "auto"}}):
        assert small_study(tmp_path, **two, executor=executor).plan().devices == 2
    for name in ("local", "ray"):
        with pytest.raises(UserError, match="found 0 GPUs, expected at least 2"):
            small_study(tmp_path, **two, executor=name).plan()
