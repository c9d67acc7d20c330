"""The boards of claims: what was planted is found, every number follows from the records."""

import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pocket_study import small_study

import claims_board
import claims_judges
import paper_in_small
import posterior_claims
import rankscope
from claims_judges import FAILS, HOLDS, OPEN, Verdict
from claims_records import Arm, Grid, keep
from paper_in_small import Study
from rankscope.records import Estimate
from rankscope.run.outputs import write_outputs
from rankscope.store import find_problems
from restore_study import restore

RANKS, LORA_RATES, FULL_RATES = (4, 32, 128), (5e-4, 2e-3, 8e-3), (5e-5, 2e-4, 8e-4)
ARMS: list[Arm] = [(r, lr) for r in RANKS for lr in LORA_RATES] + [(None, lr) for lr in FULL_RATES]
NUM_ITEMS = 30


def planted(
    folder: Path,
    gain: Callable[[Arm], float],
    kept: Callable[[Arm], float] = lambda _: 0.0,
    count: Callable[[Arm], int] = lambda _: 0,
    diverged: tuple[tuple[int, float, int], ...] = (),
    parameters: Callable[[Arm], int] = lambda _: 500,
) -> Grid:
    """Records of 3 seeds: what an arm gains and keeps, plus noise of .01 nats by item and seed."""
    noise, items, matrices, trials = np.random.default_rng(3), [], [], []
    for number, arm in enumerate([None, *ARMS]):
        for seed in range(3 if arm else 1):
            name = f"t{number}-{seed}" if arm else "base"
            for task, change in (("maths", gain), ("facts", kept)):
                for split in ("validation", "test"):
                    means = np.linspace(-2, -1, NUM_ITEMS) + (change(arm) if arm else 0)
                    for i, score in enumerate(means + 0.01 * noise.normal(size=NUM_ITEMS)):
                        row = {"model": name, "task": task, "split": split, "item": f"{i:02}"}
                        items.append(
                            row | {"score": score, "gold_logprob": 5 * score, "gold_tokens": 5}
                        )
            if arm:
                rank, lr = arm
                trials.append({"trial": name, "rank": rank, "lr": lr, "seed": seed})
                trials[-1]["trainable_parameters"] = parameters(arm)
                trials[-1]["status"] = "diverged" if (*arm, seed) in diverged else "done"
                size = {"frobenius": 2 * math.log(rank or 2), "similarity": 0.9, "top_k": 8}
                matrices.append({"trial": name, "matrix": "q", "intruders": count(arm), **size})
    pd.DataFrame(items).to_parquet(folder / "items.parquet")
    pd.DataFrame(matrices).to_parquet(folder / "spectra.parquet")
    more = {"num_label_tokens": 100}
    about = {
        "tasks": [
            {"name": "maths", "trained_on": True, "roles": []},
            {
                "name": "facts",
                "trained_on": False,
                "roles": ["retention"],
                "metric": "logprob_per_token",
            },
        ],
        "trials": [trial | more for trial in trials],
    }
    (folder / "study.json").write_text(json.dumps(about), "utf-8")
    return Grid(folder)


def around(best: float, top: float = 0.3) -> Callable[[float], float]:
    """A parabola over the logarithm of the rate."""
    return lambda lr: top - 0.05 * math.log(lr / best) ** 2


def test_a_ratio_of_ten_holds_and_one_of_forty_does_not(tmp_path: Path) -> None:
    verdicts = []
    for name, best_full in (("ten", 2.2e-4), ("forty", 2.2e-4 / 4)):
        (tmp_path / name).mkdir()
        grid = planted(
            tmp_path / name,
            lambda arm, best=best_full: around(best if arm[0] is None else 2.2e-3)(arm[1]),
        )
        verdicts.append(claims_judges.rate_ratio(grid))
    assert verdicts[0].verdict == HOLDS
    assert "tops 10.0 [" in verdicts[0].measured
    # The best rate of full fine-tuning is now the lowest that was tried: only a bound is known.
    assert verdicts[1].verdict == OPEN


def test_a_rate_at_which_a_seed_diverged_is_not_chosen_and_bounds_nothing(tmp_path: Path) -> None:
    grid = planted(tmp_path, lambda arm: around(4e-3)(arm[1]), diverged=((128, 8e-3, 2),))
    assert grid.diverged == (((128, 8e-3), 1),)
    assert grid.tuned(128) == (128, 2e-3)
    assert 8e-3 in grid.rates(32)
    # The middle rate, with a higher one that diverged, is at no end of its list.
    assert "end of its list: r=128" not in claims_judges.rate_ratio(grid).measured


def test_judges_find_what_was_planted(tmp_path: Path) -> None:
    def gain(arm: Arm) -> float:
        rank, lr = arm
        by_rank = 0 if rank is None else 0.05 * math.log(rank / 32) * (lr > 1e-3)
        return around(2e-4 if rank is None else 2e-3)(lr) + by_rank + (0.1 if rank is None else 0)

    grid = planted(
        tmp_path,
        gain,
        kept=lambda arm: -0.4 if arm[0] is None else -0.1,
        count=lambda arm: 0 if arm[0] is None else 128 // arm[0],
    )
    assert grid.tuned(32) == (32, 2e-3)
    assert grid.best_lora() == (128, 2e-3)
    # r = 32 gains .3 and full .4: four items of noise .01 in three seeds move neither by .01.
    assert grid.gain((32, 2e-3)).value == pytest.approx(0.3, abs=0.01)
    expected = {
        claims_judges.harm: FAILS,
        claims_judges.spread_by_rate: HOLDS,
        claims_judges.less_and_less: HOLDS,
        claims_judges.full_forgets_less: FAILS,
        claims_judges.matches_full: FAILS,
        claims_judges.intruders: HOLDS,
        claims_judges.capacity: FAILS,
    }
    assert {judge: judge(grid).verdict for judge in expected} == expected
    # log 4, log 32 and log 128 themselves: the log law has no residual.
    assert "a + b log r 0.0%" in claims_judges.norm_and_similarity(grid).measured


def around_tops(arm: Arm) -> float:
    """Tops inside the lists, less than a factor of 5 apart."""
    return around(3.9e-4 if arm[0] is None else 1.1e-3)(arm[1])


@pytest.mark.parametrize(
    ("judge", "gain", "verdict"),
    [
        (claims_judges.harm, lambda arm: 0.3 if arm[0] else -0.3, HOLDS),
        (claims_judges.harm, lambda _: 0.0, OPEN),
        (claims_judges.rate_ratio, around_tops, FAILS),
        (claims_judges.spread_by_rate, lambda a: 0.3 - 0.05 * (a[0] == 4) * (a[1] < 1e-3), FAILS),
        (claims_judges.spread_by_rate, lambda _: 0.3, OPEN),
        (partial(claims_judges.learns_less, rank=4), lambda a: 0.4 if a[0] else 0.3, FAILS),
        (partial(claims_judges.learns_less, rank=4), lambda a: 0.3 if a[0] else 0.4, OPEN),
        (claims_judges.less_and_less, lambda arm: 0.4 if arm[0] else 0.3, FAILS),
        (claims_judges.less_and_less, lambda _: 0.3, OPEN),
        (claims_judges.matches_full, lambda _: 0.3, HOLDS),
        (claims_judges.matches_full, lambda arm: 0.28 if arm[0] else 0.3, OPEN),
    ],
)
def test_a_gain_decides_what_it_says_of_a_claim(
    judge: Callable[[Grid], Verdict], gain: Callable[[Arm], float], verdict: str, tmp_path: Path
) -> None:
    """Every arm forgets as much."""
    assert judge(planted(tmp_path, gain, kept=lambda _: -0.1)).verdict == verdict


def test_intruders_that_rise_with_the_rank_refute_that_they_fall(tmp_path: Path) -> None:
    grid = planted(tmp_path, lambda _: 0.3, count=lambda arm: arm[0] or 0)
    assert claims_judges.intruders(grid).verdict == FAILS


def test_a_margin_may_be_a_published_difference(tmp_path: Path) -> None:
    grid = planted(
        tmp_path,
        lambda arm: around(2e-3, {4: 1.0, 32: 1.1, 128: 1.03}.get(arm[0] or 0, 1.0))(arm[1]),
        kept=lambda arm: -0.03 if arm[0] == 32 else -0.02,
    )
    # On "recall" r = 128 is 0.03 above r = 4: more than 0.02.
    assert claims_judges.recall_and_reasoning(grid, grid).verdict == FAILS
    # r = 32 loses 0.01 more than full fine-tuning: that is less, and so the claim holds.
    assert claims_judges.full_forgets_less(grid, excluded=0.02).verdict == HOLDS
    # r = 128 loses as much: no sign is clear, and a difference of 0.02 is excluded.
    of_128 = [claims_judges.full_forgets_less(grid, 128, nats).verdict for nats in (0.0, 0.02)]
    assert of_128 == [OPEN, FAILS]


def test_nothing_forgotten_and_no_intruder_cannot_be_compared(tmp_path: Path) -> None:
    grid = planted(tmp_path, lambda arm: 0.3, kept=lambda arm: 0.1)
    judges = claims_judges.less_and_less, claims_judges.full_forgets_less, claims_judges.intruders
    assert {judge(grid).verdict for judge in judges} == {claims_judges.UNTESTABLE}


def test_records_of_a_study_give_its_own_numbers(tmp_path: Path) -> None:
    arms = [{"method": "lora", "rank": [2, 4], "lr": 2e-3}]
    folder = tmp_path / "study"
    evaluate = {"max_items": 8, "retention": ["pocket_cloze"]}
    search = {"strategy": "search", "budget": "2 trials"}
    small_study(tmp_path, arms=arms, seeds=[0], evaluate=evaluate, **search).run(folder)
    keep(folder, tmp_path / "kept", "0123456")
    grid, study = Grid(tmp_path / "kept"), rankscope.load(folder)
    scores = study.scores.query("task == @grid.task and split == 'test'").set_index("trial")
    for rank in grid.ranks:
        (trial,) = grid.trial_ids((rank, 2e-3))
        kept = grid.scores((rank, 2e-3), grid.task, measure="score").mean()
        assert kept == pytest.approx(scores.loc[trial, "score"], abs=1e-6)
        sizes = study.analyses["matrices"].query("trial == @trial")["frobenius"]
        norm = math.sqrt((sizes**2).sum())
        assert grid.norms((rank, 2e-3))[0] == pytest.approx(norm, rel=1e-6)
    restore(tmp_path / "kept", tmp_path / "again")
    again = rankscope.load(tmp_path / "again")
    # Kept records have no gold answers, so the most frequent one is not known.
    answers = [re.sub(r"One can score .*", "", repr(of.answer)) for of in (again, study)]
    assert answers[0] == answers[1]
    pd.testing.assert_frame_equal(again.arms, study.arms, rtol=1e-6)
    assert len(again.records.rounds) >= 1
    assert again.records.rounds == study.records.rounds
    for key, found in study.records.items.items():
        restored = again.records.items[key].gold_logprobs  # float32 in the records
        assert restored == pytest.approx(found.gold_logprobs, rel=1e-5, abs=1e-5)
    assert str(tmp_path) not in (tmp_path / "kept" / "study.json").read_text("utf-8")


def test_the_pictured_answer_follows_from_the_records(tmp_path: Path) -> None:
    restore(claims_board.RECORDS / "recall-grid", tmp_path / "study")
    _, recommendation = write_outputs(tmp_path / "study")
    (advice,) = recommendation.advice
    assert advice.verdict == "Not decided yet."
    assert "only 21 steps after warm-up. So far the scores favor LoRA rank 32." in advice.summary
    assert [rank.rank for rank in advice.ranks_that_may_do] == [4, 32, 128]
    assert find_problems(tmp_path / "study") == []


def test_a_restored_study_weighs_the_answer_among_those_offered(tmp_path: Path) -> None:
    """Letters of medmcqa, texts of ARC-easy."""
    records = claims_board.RECORDS / "paper-in-small-gemma-alpha"
    restore(records, tmp_path / "study")
    study = rankscope.load(tmp_path / "study").records
    kept = pd.read_parquet(records / "items.parquet").set_index(["model", "task", "split"])
    kept = kept.sort_index(kind="stable")
    for key, found in study.items.items():
        rows = kept.loc[key]
        wanted = (rows["among"] / rows["gold_tokens"]).to_numpy()
        assert found.gold_logprobs == pytest.approx(wanted, abs=1e-5)
    assert not any("the records lack" in note for note in study.notes)


def test_every_number_of_the_board_follows_from_the_records() -> None:
    for page, text in claims_board.numbers().items():
        board = page.read_text("utf-8")
        assert claims_board.with_numbers(board, text) == board, (
            f"{page} is not what the records say; run python evidence/claims_board.py"
        )


def test_every_number_of_the_axes_follows_from_the_records() -> None:
    for page, text in posterior_claims.numbers().items():
        kept = page.read_text("utf-8")
        found = claims_board.with_numbers(kept, text, "posterior_claims.py")
        assert found == kept, "run python evidence/posterior_claims.py"


def test_every_number_of_a_card_is_in_a_table_of_its_records() -> None:
    pages = [page.read_text("utf-8") for page in claims_board.ROOT.glob("studies/*/README.md")]
    rows = [row for page in pages for row in page.split("\n") if row.startswith("|")]
    found = (claims_board.ROOT.parent / "docs" / "findings.md").read_text("utf-8")
    for card in (claims_board.ROOT / "cards.md").read_text("utf-8").split("\n## ")[1:]:
        title, _, text = card.partition("\n")
        assert len(card.split()) <= 80, title
        if "`make evidence`" in text:
            assert f"cards.md#{title.lower().replace(' ', '-')})" in found, title
            names = re.findall(r"\[([\w-]+)\]\(records/\1\)", text)
            names = [paper_in_small.MAIN.get(name, f"[{name}]") for name in names]
            (measured,) = re.findall(r"^- Measured: (.*)\.$", text, re.MULTILINE)
            for part in measured.split("; "):
                of = [row for row in rows if part in row and any(name in row for name in names)]
                assert any(re.search(r"\d", part) for _ in of), f"{title}: {part}"


def test_the_probability_of_a_claim_by_hand() -> None:
    items = Estimate(
        value=0.02, low=None, high=None, n=40, seeds=1, item_error=0.02, seed_error=None
    )
    assert claims_judges.p_between(items, low=0) == pytest.approx(0.8413, abs=1e-4)
    # Three seeds and no error of the items: t with two degrees of freedom, P(t > -1).
    seeds = items.model_copy(update={"item_error": 0.0, "seed_error": 0.02, "seeds": 3})
    assert claims_judges.p_between(seeds, low=0) == pytest.approx(0.7887, abs=1e-4)
    assert claims_judges.p_between(seeds, 0, 0.04) == pytest.approx(2 * 0.7887 - 1, abs=2e-4)


TRAINED, SCORED = ("gsm8k", "medmcqa", "mathqa", "mmlu"), ("arc_easy",)
SMALL_RANKS, RATE = (8, 32, 128), {True: 5e-5, False: 1e-3}
SMALL_ITEMS = 30
Change = Callable[[int | None, str, str], float]
"""Of a rank (None: full), the task that was trained and the one that is tested, nats."""


def planted_in_small(
    folder: Path, change: Change, norm: Callable[[int], float] = math.log
) -> Study:
    """Records of one seed, with .01 nats of noise by item; r = 8 has a second, bad rate."""
    noise, items, trials, matrices = np.random.default_rng(1), [], [], []
    arms = [(rank, RATE[rank is None]) for rank in (*SMALL_RANKS, None)] + [(8, 4e-3)]
    models = [("base", None, 0.0, "")]
    for task in TRAINED:
        for rank, lr in arms:
            name = f"{task}-{rank}-{lr}"
            models.append((name, rank, lr, task))
            trials.append(
                {"trial": name, "task": task, "rank": rank, "lr": lr, "seed": 0, "status": "done"}
            )
            size = {"frobenius": norm(rank or 8), "top_k": 8}
            kept, count = (0.9, 200 // rank) if rank else (0.8, 0)
            size |= {"similarity": kept, "intruders": count}
            matrices.append({"trial": name, "matrix": "q", **size})
    for name, rank, lr, trained in models:
        for test in (*TRAINED, *SCORED):
            for split in ("validation", "test"):
                gain = (change(rank, trained, test) - (lr == 4e-3)) if trained else 0.0
                for i in range(SMALL_ITEMS):
                    score = -2 + i / SMALL_ITEMS + gain + 0.01 * noise.normal()
                    row = {"model": name, "task": test, "split": split, "item": f"{i:02}"}
                    row |= {"score": float(score > -1.5), "gold_logprob": 3 * score}
                    among = None if test == "gsm8k" else score
                    items.append(row | {"gold_tokens": 3, "among": among})
    pd.DataFrame(items).to_parquet(folder / "items.parquet")
    pd.DataFrame(matrices).to_parquet(folder / "spectra.parquet")
    tasks = [{"name": task, "trained_on": task in TRAINED} for task in (*TRAINED, *SCORED)]
    about = {"tasks": tasks, "trials": trials}
    (folder / "study.json").write_text(json.dumps(about), "utf-8")
    return Study(folder)


def test_judges_of_the_small_paper_find_what_was_planted(tmp_path: Path) -> None:
    def as_reported(rank: int | None, trained: str, test: str) -> float:
        if trained != test:
            return -0.2 if rank is None else -0.1
        return 0.3 + (0.1 if rank == 32 and test == "gsm8k" else 0)

    def reversed_of_it(rank: int | None, trained: str, test: str) -> float:
        if trained != test:
            return -0.1 if rank is None else -0.2
        return 0.6 if rank is None else 0.3 + (0.2 if rank == 8 and test == "mmlu" else 0)

    verdicts = {}
    for expected, change, norm in (
        (HOLDS, as_reported, math.log),
        (FAILS, reversed_of_it, lambda rank: rank**0.6),
    ):
        (tmp_path / expected).mkdir()
        study = planted_in_small(tmp_path / expected, change, norm)
        assert study.letters == ("medmcqa", "mathqa", "mmlu", "arc_easy")
        assert study.common_rate == 1e-3
        assert study.grids["gsm8k"].tuned(8) == (8, 1e-3)
        found = [judge(study).verdict for _, judge, _ in paper_in_small.POINTS]
        verdicts[expected] = found
    # Similarity and intruders were planted_in_small as reported in both.
    assert verdicts == {HOLDS: [HOLDS] * 7, FAILS: [FAILS] * 5 + [HOLDS] * 2}


@pytest.mark.parametrize(
    ("shared", "verdict"),
    [({4: 0.0, 128: 1.0}, HOLDS), ({4: 1.0, 128: 1.0}, FAILS), ({4: 0.0, 128: 0.0}, FAILS)],
)
def test_only_a_high_rank_may_change_what_full_fine_tuning_changes(
    shared: dict[int, float], verdict: str
) -> None:
    noise = np.random.default_rng(0)
    of_full, other = noise.normal(size=(2, 200))

    def scores(arm: Arm, _: str) -> np.ndarray:
        part = 1.0 if arm[0] is None else shared[arm[0]]
        return part * of_full + (1 - part) * other + 0.05 * noise.normal(size=(3, 200))

    study = SimpleNamespace(
        ranks=(4, 128), task="", tuned=lambda rank: (rank, 1e-3), scores=scores, base=lambda _: 0.0
    )
    assert paper_in_small.like_full(study).verdict == verdict


@pytest.mark.parametrize(
    ("lora", "verdict"), [((9.0, 1.0, 1.0, 1.0), HOLDS), ((1.0, 1.0, 1.0, 1.0), FAILS)]
)
def test_an_update_in_few_matrices_is_told_from_one_in_all(
    lora: tuple[float, ...], verdict: str
) -> None:
    norms = {32: lora, None: (1.0, 1.0, 1.0, 1.0)}
    rows = [
        {"trial": str(r), "frobenius": norm, "matrix": f"layers.{layer}.q_proj"}
        for r, of in norms.items()
        for layer, norm in enumerate(of)
    ]
    grid = SimpleNamespace(
        tuned=lambda rank: (rank, 1e-3), trial_ids=lambda a: [str(a[0])], spectra=pd.DataFrame(rows)
    )
    found = paper_in_small.few_places(SimpleNamespace(grids={"maths": grid}))
    assert found.verdict == verdict
    spread = "1 and 4 (layers 1 and 4" if verdict == HOLDS else "4 and 4 (layers 4 and 4"
    assert f"maths {spread}; Gini" in found.measured


@pytest.mark.parametrize(("low", "verdict"), [(0.0, HOLDS), (0.5, FAILS)])
def test_the_balance_is_judged_by_draws_within_the_margin(
    low: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Net gains of r = 8, r = 32 and r = 128: the middle is best, or behind r = 8 by .2 for a
    # margin of .1, in nine draws of ten.
    draws = np.tile([low, 0.3, 0.1], (10, 1))
    draws[0, 1] = 1.0 - draws[0, 1]
    draws[0, 0] = draws[0, 1] + 0.2 if low == 0 else 0.0
    arms = [SimpleNamespace(summary=SimpleNamespace(rank=rank)) for rank in (8, 32, 128)]
    net = SimpleNamespace(best=draws.max(axis=1), draws=draws)
    results = SimpleNamespace(net=net, arms=arms, allowed=[0, 1, 2], margin=0.1)
    monkeypatch.setattr(paper_in_small, "results_of", lambda *_, is_balance: {"maths": results})
    monkeypatch.setattr(paper_in_small, "learned", lambda *_: True)
    study = SimpleNamespace(name="planted", grids={"maths": None}, series=(8, 32, 128))
    found = paper_in_small.best_balance(study)
    assert (found.verdict, found.measured) == (
        verdict,
        f"probability by task: maths {0.9 if low == 0 else 0.1:.3f}",
    )


def test_every_number_of_the_page_follows_from_the_records() -> None:
    for page, text in paper_in_small.numbers().items():
        kept = page.read_text("utf-8")
        assert paper_in_small.with_tables(kept, text) == kept, (
            f"{page} is not what the records say; run python evidence/paper_in_small.py"
        )
