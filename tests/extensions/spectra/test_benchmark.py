"""The benchmark of spectra, in small."""

from pathlib import Path

import pytest
from tiny_models import tiny_llama

import race
from spectra import Given, full

from ...test_benchmarks import LinesOf


def test_spectra_prints_its_lines(lines_of: LinesOf, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    options = "--size 300 --rank 4 --pairs 1 --peft --model"
    lines = lines_of("spectra", *options.split(), str(tmp_path / "model"))
    assert [line["benchmark"] for line in lines] == [
        "spectra_intruders",
        "spectra_similarity",
        "spectra_adapter",
    ]
    for line in lines:
        assert 0 < line["parity"] <= 1e-5
        assert line["parity_decisions"] == 0
        assert 0 <= line["parity_max_matched"] <= 1e-3
    assert lines[0]["peft_intruders"] == lines[0]["intruders"] > 0


@pytest.mark.usefixtures("minutes")
def test_a_side_answers_from_a_process_of_its_own(tmp_path: Path) -> None:
    given = Given(16, None, 2, False, tmp_path)
    with race.worker(full, given) as turn:
        found = [turn().found for _ in range(2)]
    assert found == [full(given)().found] * 2
    with pytest.raises(SystemExit, match="full failed"), race.worker(full, None):
        pass
