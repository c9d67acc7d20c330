"""The benchmark of spectra, in small."""

from pathlib import Path

from tiny_models import tiny_llama

from ...test_benchmarks import LinesOf


def test_spectra_prints_its_lines(lines_of: LinesOf, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    options = "--size 300 --rank 4 --peft --model"
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
