"""README's figures of speed are those of the committed lines of the races."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def lines(page: str, benchmark: str) -> list[Any]:
    """A race's lines in ``benchmarks/results/PAGE.json``, whose page README links to."""
    assert f"benchmarks/results/{page}.md" in README
    text = (ROOT / "benchmarks" / "results" / f"{page}.json").read_text("utf-8")
    return [row for row in map(json.loads, text.splitlines()) if row["benchmark"] == benchmark]


def line(name: str, benchmark: str) -> Any:
    return lines(f"2026-11-29-{name}", benchmark)[0]


def duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def test_a_whole_study() -> None:
    study = line("whole-study", "whole_study")
    ours, theirs = study["seconds"]["rankscope"], study["seconds_of_scripts"]["all"]
    faster = ours * study["ratio_trl_without_recomputation"]
    assert f"[{duration(ours)}](" in README
    assert f"| {duration(theirs)}; {duration(faster)} without" in README
    for count in ("trained_tokens", "scored_tokens"):
        share = study[count]["rankscope"] / study[count]["scripts"]
        assert f"{share:.0%}".replace("%", " %") in README
    not_done = sum(study["shares"][part] for part in ("stopping", "seeds", "items"))
    assert f"{100 * not_done:.0f} and 86 % are work" in README


def test_scoring_and_spectra() -> None:
    choice = line("evaluation", "evaluate_choice")
    (later,) = lines("2026-12-01-training", "evaluate_choice")
    spectra = line("spectra", "spectra_intruders")
    assert f"[{later['ratio']:.1f} to {choice['ratio']:.1f}](" in README
    assert f"[34 to {spectra['ratio']:.0f}](" in README
    assert f"100 to {spectra['ratio_peft']:.0f} |" in README
    assert f"full SVDs of both | {spectra['ratio_once']:.1f} |" in README


def test_training_with_amx() -> None:
    first, second = lines("2026-12-01-training", "train_sweep")
    assert f"with AMX [{first['ratio_trl_without_recomputation']:.1f}](" in README
    assert f"with AMX [{second['ratio']:.1f} and {first['ratio']:.1f}](" in README
    tuned = "{:.1f} and {:.1f} |".format(*(row["ratio_hand_tuned"] for row in (second, first)))
    assert f"with AMX {tuned}" in README


def test_training_and_answers_with_avx512() -> None:
    plain, compiled, again, _ = lines("2026-11-30-training", "train_sweep")  # the last: disturbed
    one_run = json.loads(
        (ROOT / "benchmarks/results/2026-11-30-training-one-run.json").read_text("utf-8")
    )
    for ratio, written in (
        ("ratio_trl_without_recomputation", "| [{} to {}](benchmarks/results/2026-11-30-training"),
        ("ratio", "| {} to {}, with AMX [3.8"),
        ("ratio_hand_tuned", "| {} to {}, with AMX 2.0"),
    ):
        found = [run[ratio] for run in (plain, compiled, again, one_run)]
        assert written.format(f"{min(found):.1f}", f"{max(found):.1f}") in README
    text = (ROOT / "benchmarks/results/2026-11-30-evaluation.json").read_text("utf-8")
    ratios = {row["benchmark"]: row["ratio"] for row in map(json.loads, text.splitlines())}
    assert f"to [{ratios['evaluate_generate']:.1f}](" in README
