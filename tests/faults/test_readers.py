"""Commands that read a study while it runs."""

from pathlib import Path

from command_line import rankscope
from pocket_study import results

from fault_readers import readers


def test_readers_beside_a_run_change_nothing(place: Path, own: Path) -> None:
    """From before its first write to after its end; ``own`` is the same study without them."""
    out = place / "out"
    with readers(out, place / "readers", 6) as seen:
        ran = rankscope("run", own.parent / "study.yaml", "--out", out)
    assert ran.code == 0, ran.err
    assert seen.faults == {}
    assert seen.total > 6
    assert results(out) == results(own)
