"""The races: each runs in a tiny form, and what makes their figures mean something holds."""

import ast
import json
import math
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from launcher import Launcher
from tiny_models import VOCABULARY, tiny_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import evaluation_race
import simulate_studies
import whole_study
from agreement import choice_agreement, text_agreement
from packed_runs import packed, parts
from race import Rows, Setting, Times, announce, parity_of, tolerance
from random_truths import BY_NAME, draw
from rankscope.advise.recommend import recommend
from rankscope.data.encode import EncodedRow
from rankscope.models.model_folder import pocket_folder
from rankscope.registry import extensions
from search import WORLDS, Drawn, Stored, judge, play_grid, play_random, play_search, print_table
from single_runs import Loop, attention_of, concatenated, load, padded_at_labels, plain, train_alone
from useful_work import useful_flops

REPOSITORY = Path(__file__).parents[1]
RELATIVE = tolerance(str(pocket_folder()), torch.float32)
TRIALS = ((2, 1e-3, 0), (8, 1e-3, 1))


@pytest.fixture(scope="module")
def rows(data_dir: Path) -> Rows:
    """GSM8K rows of up to 100 words of the pocket model, of different lengths."""
    setting = Setting(
        model=str(pocket_folder()),
        task="gsm8k",
        data_dir=str(data_dir),
        trials=TRIALS,
        batch_size=2,
        gradient_accumulation=2,
        max_length=100,
        steps=4,
        dtype="float32",
        device="cpu",
    )
    return Rows.read(setting)


@pytest.fixture(scope="module")
def ours(rows: Rows) -> Times:
    return packed(rows)


LinesOf = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def lines_of(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> LinesOf:
    """Runs a benchmark and its sides in this process: its JSON lines. To import everything for
    each side takes longer than a race in small."""

    def run_side(module: str, function: str, given: Any) -> Any:
        return getattr(import_module(module), function)(given)

    def run(script: str, *arguments: str) -> list[dict[str, Any]]:
        module = import_module(script)
        if hasattr(module, "run_side"):
            monkeypatch.setattr(module, "run_side", run_side)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert module.main() == 0
        found = capfd.readouterr().out.splitlines()

        # TRL prints dicts in Python's form.
        return [json.loads(line) for line in found if line.startswith('{"')]

    return run


def test_what_scripts_import_from_the_package_is_there() -> None:
    """Also inside functions that no small run reaches."""
    missing, there = [], {module.__name__.split(".")[2] for module in extensions()}
    for folder in ("benchmarks", "scripts", "evidence", "recipes"):
        for path in sorted((REPOSITORY / folder).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rankscope"):
                    kind, _, rest = (node.module or "").removeprefix("rankscope.").partition(".")
                    if kind == "extensions" and rest.split(".")[0] not in there:
                        continue
                    names = [alias.name for alias in node.names]
                    module = __import__(str(node.module), fromlist=names)
                    missing += [f"{path.name}: {n}" for n in names if not hasattr(module, n)]
    assert missing == []


RACES: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    # TRL, the hand-tuned loop and the group: other code, the same numbers but for rounding.
    "train_sweep": (
        "--ranks 2,4 --steps 3 --lr 1e-3 --max-length 100 --dtype float32 --device cpu "
        "--model POCKET --data-dir DATA",
        lambda line: 0 < line["parity"] <= line["parity_tolerance"] and line["ratio_hand_tuned"],
    ),
    "rank_cost": (
        "--ranks 2,8 --steps 2 --max-length 100 --dtype float32 --model POCKET --data-dir DATA",
        lambda line: line["tokens_per_second"].keys() == {"2", "8", "full"},
    ),
    "train_pocket": ("--steps 4 --batch-size 4", lambda line: line["ratio_hand_tuned"]),
    # A random model ties nearly: every item predicted otherwise has to be listed as that.
    "evaluate_choice": (
        "--task arc_easy --items 12 --ranks 2 --model BYTES --data-dir DATA",
        lambda line: (
            0 < line["parity"] <= 1e-3
            and line["same_tokens"] == 1
            and all(abs(case["margin"]) <= 2e-3 for case in line["differences"])
        ),
    ),
    "evaluate_generate": (
        "--items 3 --ranks 2,4 --with-base --max-new-tokens 8 --batch-sizes 2,4 "
        "--model BYTES --data-dir DATA",
        lambda line: line["same_texts"] == 1 and line["adapters"] == 2,
    ),
    "evaluate_agreement": (
        "--items 4 --written 2 --max-new-tokens 8 --num-fewshot 1 --model BYTES --data-dir DATA",
        lambda line: {"arc_easy 1 shots", "mmlu 1 shots", "gsm8k written"} <= line.keys(),
    ),
}


@pytest.mark.usefixtures("minutes")
@pytest.mark.parametrize("script", RACES)
def test_a_race_in_small_prints_its_line(
    script: str, lines_of: LinesOf, byte_pair_model: Path, data_dir: Path
) -> None:
    options, holds = RACES[script]
    places = {"POCKET": pocket_folder(), "BYTES": byte_pair_model, "DATA": data_dir}
    (line,) = lines_of(script, *(str(places.get(word, word)) for word in options.split()))
    assert line["benchmark"] == script
    assert holds(line), line
    assert line.get("ratio", 1) > 0


@pytest.mark.usefixtures("minutes")
def test_a_whole_study_has_the_losses_and_scores_of_the_scripts(
    lines_of: LinesOf,
    launcher: Launcher,
    beginnings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It exits with 1 if they differ. The parts of what is saved add up to all of it. The studies
    are commands of the launcher, the harness scores here; decompositions have their own process."""
    in_its_process = evaluation_race.run_side

    def run_side(module: str, function: str, given: Any) -> Any:
        if module == "whole_study":
            return in_its_process(module, function, given)
        return getattr(import_module(module), function)(given)

    def run(command: list[str], *, env: dict[str, str], **_: object) -> SimpleNamespace:
        cache = {"RANKSCOPE_CACHE": env["RANKSCOPE_CACHE"]}
        ran = launcher.run(*command[1:], environment=cache)
        assert ran.code == 0, ran.err
        return SimpleNamespace(returncode=ran.code)

    monkeypatch.setattr(evaluation_race, "run_side", run_side)
    monkeypatch.setattr(whole_study, "subprocess", SimpleNamespace(run=run))
    sizes = "--ranks 2 --rates 1e-3,3e-3 --full-rates 5e-4 --seeds 2 --rows 12 --max-length 100"
    steps = "--steps 6 --items 8 --sample-steps 2 --dtype float32"
    short = shutil.copytree(beginnings, tmp_path / "data")  # Without rows beyond the context
    rows = short / "gsm8k" / "train.jsonl"
    rows.write_bytes(b"".join(sorted(rows.read_bytes().splitlines(True), key=len)[:40]))
    places = ["--model", str(pocket_folder()), "--data-dir", str(short)]
    (result,) = lines_of("whole_study", *sizes.split(), *steps.split(), *places)
    ours, scripts = result["seconds"]["rankscope"], result["seconds_of_scripts"]["all"]
    assert result["ratio"] == pytest.approx(scripts / ours, rel=2e-3)  # all are rounded
    shares = result["shares"].values()  # each is rounded, and large where both sides take as long
    assert sum(shares) == pytest.approx(1, abs=1e-3 * sum(map(abs, shares)))
    assert sum(result["trials"].values()) >= 2 * 3  # And those beyond the lists
    assert result["trained_tokens"]["rankscope"] <= result["trained_tokens"]["scripts"]
    assert result["scored_tokens"]["rankscope"] <= result["scored_tokens"]["scripts"]


@pytest.mark.usefixtures("minutes")
def test_gpu_runs_to_its_end_on_a_processor(lines_of: LinesOf, tmp_path: Path) -> None:
    options = ["--tiny", "--device", "cpu", "--results", str(tmp_path)]
    (result,) = lines_of("gpu", *options)
    assert result["benchmark"] == "gpu"
    assert 0 < result["gradient_errors"]["grouped_mm"] < 2**-5  # some dozen roundings to 2^-9
    assert len(result["cases"]) == 4
    for line in result["cases"].values():
        assert 0 < line["tokens_per_second"] < math.inf
        assert line["planned_bytes"] > 0
    assert len(result["parts"]) == 7
    for line in result["parts"].values():
        assert "skipped" in line or 0 < line["tokens_per_second"] < math.inf
    (page,) = tmp_path.iterdir()
    text = page.read_text()
    assert all(f"| {name} | " in text for name in result["cases"] | result["parts"])


@pytest.mark.parametrize("loss", [plain, padded_at_labels, concatenated])
@pytest.mark.parametrize("is_joined", [False, True])
def test_every_single_run_loop_gives_the_groups_losses(
    rows: Rows, ours: Times, loss: Callable[..., torch.Tensor], is_joined: bool
) -> None:
    loop = Loop(loss, is_joined=is_joined)
    times = Times()
    for spec in rows.setting.specs():
        train_alone(load(rows.setting, attention_of(loop)), spec, rows, loop, times)
    assert parity_of(ours, [times]) <= RELATIVE
    assert times.tokens == ours.tokens > 0


def test_a_part_switched_off_leaves_the_losses(rows: Rows, ours: Times) -> None:
    """Four steps: after the first update losses hang on gradients too."""
    for name, switched_off in parts(rows).items():
        with switched_off:
            assert parity_of(ours, [packed(rows)]) <= RELATIVE, name


def test_useful_operations_by_hand() -> None:
    """Hidden 64, inner 96, 2 layers, 4 query and 2 key/value heads of 16, 300 words."""
    frozen = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96)
    adapter = 2 * 4 * (64 + 64)  # rank 4 on q_proj
    row = EncodedRow((5, 6, 7), (False, True, True), truncated=False)
    attention = 2 * 4 * 6 * (2 * 16 * 6)  # layers, heads, products; 6 pairs, 2 operations each
    expected = 4 * frozen * 3 + 6 * adapter * 3 + attention + 4 * 64 * 300 * 2
    assert useful_flops(tiny_llama(), 4, ["q_proj"], [row]) == expected == 918_528


def test_a_race_without_parity_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert announce({"parity": 1e-6, "parity_tolerance": 1e-5, "ratio": 1.23456}) == 0
    assert json.loads(capsys.readouterr().out)["ratio"] == 1.235
    for parity in (1e-4, math.nan):
        assert announce({"parity": parity, "parity_tolerance": 1e-5}) == 1


@pytest.fixture(scope="module")
def byte_pair_model(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama on byte pairs; transformers' stop strings need a tokenizer of that kind."""
    folder = tmp_path_factory.mktemp("byte_pairs")
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces.train([str(data_dir / "arc_easy" / "train.jsonl")], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    model = tiny_llama()
    model.config.max_position_embeddings = 4096
    model.save_pretrained(folder)
    return folder


def test_every_other_prediction_is_counted_with_its_margin() -> None:
    """By hand: the second item of the second model is predicted otherwise, per character alone."""
    questions = [{"answers": [" ab", " abcd"]}] * 2
    ids = {"tokens": [[1], [2]]}
    ours = {"logprobs": [[[-1, -4], [-2, -6]], [[-1, -4], [-2.0, -3.8]]], **ids}
    theirs = {"logprobs": [[[-1, -4], [-2, -6]], [[-1, -4], [-2.0, -4.2]]], "tokens": [[1], [3]]}
    found = choice_agreement(questions, ours, theirs)
    assert found["parity"] == pytest.approx(0.4)
    assert found["same_prediction"] == {"acc": 1, "acc_norm": 0.75, "acc_bytes": 0.75}
    assert found["same_tokens"] == 0.5
    # Per character ours are -1 and -0.95, theirs -1 and -1.05.
    by_metric = {case.pop("metric"): case for case in found["differences"]}
    assert set(by_metric) == {"acc_norm", "acc_bytes"}
    for case in by_metric.values():
        assert case == {"model": 1, "item": 1, "margin": pytest.approx(0.05)}
    assert text_agreement({"texts": [["a", "b"], ["c"]]}, {"texts": [["a", "x"], ["c"]]}) == 2 / 3


def test_sides_of_a_search_spend_their_budget_and_are_judged_by_the_truth() -> None:
    drawn = Drawn(WORLDS["one broken arm"], 0)
    assert min(drawn.gain.values()) == pytest.approx(0.02 - drawn.base["med"])
    whole = judge(drawn, play_grid(drawn))
    assert whole["tokens"] == 1
    assert 0 <= whole["lost"] < 0.05
    assert play_random(drawn, 12, 0).trainings == 12
    stored = Stored(drawn.frame, "med")
    assert len(play_search(stored, 1).records.trials) == len(drawn.trials)


def test_regret_is_shown_in_points_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    sides = [{"a": 0.01, "b": 0.05}, {"a": 0.03, "b": 0.05}]
    rows = [{"sides": {k: {"lost": v, "p": 0.5, "tokens": 0.2} for k, v in of.items()}}
            for of in sides]  # fmt: skip
    print_table(rows, "by hand")
    found = capsys.readouterr().out.splitlines()[-2:]
    assert found[0] == "| a | 2.00 ± 1.96 | 2.9 | 0.500 | 0.500 | 0.200 | +0.00 ± 0.00 |"
    assert found[1] == "| b | 5.00 ± 0.00 | 5.0 | 0.000 | 0.500 | 0.200 | +3.00 ± 1.96 |"


MANY = {"ranks": (8,), "seeds": (40, 40), "items": (4000, 4000), "retained": 0, "gain": (1.5, 0.0)}


@pytest.mark.parametrize(
    "name", ["four retention tasks", "nats and points mixed", "seeds that collapse"]
)
def test_true_net_gains_are_what_many_seeds_and_items_show(name: str) -> None:
    """The advice counts in the truth's units; a gain that seeds lose by collapsing is not true."""
    drawn = draw(replace(BY_NAME[name], **MANY), 1)
    (advice,) = recommend(drawn.study).advice
    found = {arm.label: arm.expected.net.value for arm in advice.arms if arm.expected is not None}
    assert found == pytest.approx(drawn.net["med"], abs=0.02)


def test_items_of_a_passage_share_how_far_their_change_is_off() -> None:
    kind = replace(BY_NAME["8 passages"], ranks=(8,), seeds=(2, 2), items=(16000, 16000))
    study = draw(kind, 0).study
    for task in ("med", "general"):
        of = {model: found for (model, name, split), found in study.items.items()
              if (name, split) == (task, "test")}  # fmt: skip
        base = of.pop("base")
        change = np.mean([found.scores - base.scores for found in of.values()], axis=0)
        passages = [change[np.array(base.subjects) == p] for p in dict.fromkeys(base.subjects)]
        error = np.sqrt(np.mean([passage.var() / len(passage) for passage in passages]))
        assert len(passages) == 8
        assert np.std([passage.mean() for passage in passages]) > 2 * error


def test_random_truths_are_written_once_and_paired(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    options = ["--only", "random", "--row", "30 retention", "--draws", "2", "--json", str(rows)]
    monkeypatch.setattr(sys, "argv", ["simulate_studies", *options])
    simulate_studies.main()
    table, found = capsys.readouterr().out, simulate_studies.read_rows(rows)
    simulate_studies.main()
    assert simulate_studies.read_rows(rows) == found
    assert capsys.readouterr().out.splitlines()[:-2] == table.splitlines()[:-2]
    assert [(row["kind"], row["seed"], len(row["arms"])) for row in found] == [
        ("30 retention items", seed, 6) for seed in (0, 1)
    ]
    after = tmp_path / "after.jsonl"
    for row, more in zip(found, (0.01, 0.03), strict=True):
        row["regret"] += more
    unpaired = found[0] | {"draw": 0}
    after.write_text("".join(json.dumps(row) + "\n" for row in [*found, unpaired]))
    simulate_studies.print_pairs(rows, after)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 answers in both, 2 before, 3 after"
    assert [line.split(" | ")[4] for line in lines[4:]] == ["+2.00 ± 1.00"] * 2
