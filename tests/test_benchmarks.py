"""The races: each runs in a tiny form, and what makes their figures mean something holds."""

import ast
import json
import math
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from launcher import Launcher
from tiny_models import VOCABULARY, tiny_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import race
import whole_study
from agreement import choice_agreement, text_agreement
from packed_runs import packed
from race import Segment, Side, Turn, announce, interval_of_median, take_turns
from rankscope.models.model_folder import pocket_folder
from rankscope.registry import extensions
from single_runs import Loop, by, concatenated, padded_at_labels, plain
from training import Rows, Setting, difference, tolerance

REPOSITORY = Path(__file__).parents[1]
RELATIVE = tolerance(str(pocket_folder()), torch.float32)
TRIALS = ((2, 1e-3, 0), (8, 1e-3, 1))


@pytest.fixture(scope="module")
def rows(data_dir: Path) -> Rows:
    """GSM8K rows of up to 100 words of the pocket model, of different lengths."""
    setting = Setting(
        model=str(pocket_folder()), task="gsm8k", data_dir=str(data_dir), trials=TRIALS,
        batch_size=2, gradient_accumulation=2, max_length=100, steps=4, dtype="float32",
        device="cpu",
    )  # fmt: skip
    return Rows.read(setting)


@pytest.fixture(scope="module")
def ours(rows: Rows) -> Segment:
    return packed(rows)()


LinesOf = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def lines_of(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> LinesOf:
    """Runs a benchmark and its sides in this process: its JSON lines. To import everything for
    each side takes longer than a race in small."""

    @contextmanager
    def here(side: Side, given: Any) -> Iterator[Turn]:
        yield side(deepcopy(given))

    def run(script: str, *arguments: str) -> list[dict[str, Any]]:
        module = import_module(script)
        monkeypatch.setattr(race, "worker", here)
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
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
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
    # TRL, the hand-tuned loops and the group: other code, the same numbers but for rounding.
    "train_sweep": (
        "--ranks 2,4 --lr 1e-3 --max-length 100 --dtype float32 --device cpu --pairs 1 "
        "--model POCKET --data-dir DATA",
        lambda line: (
            0 < line["parity"] <= line["parity_tolerance"] and line["ratio_hand_tuned_joined"]
        ),
    ),
    "rank_cost": (
        "--ranks 2,8 --steps 2 --max-length 100 --dtype float32 --model POCKET --data-dir DATA",
        lambda line: line["tokens_per_second"].keys() == {"2", "8", "full"},
    ),
    "train_pocket": (
        "--steps 3 --batch-size 4 --pairs 2",
        lambda line: line["rates"].keys() == {"packed", "plain_loop", "hand_tuned"},
    ),
    # A random model ties nearly: every item predicted otherwise has to be listed as that.
    "evaluate_choice": (
        "--task arc_easy --items 12 --ranks 2 --pairs 6 --model BYTES --data-dir DATA",
        lambda line: (
            0 < line["parity"] <= 1e-3
            and line["same_tokens"] == 1
            and all(abs(case["margin"]) <= 2e-3 for case in line["differences"])
            and line["intervals"]["ratio"][0] <= line["ratio"] <= line["intervals"]["ratio"][1]
        ),
    ),
    "evaluate_generate": (
        "--items 3 --ranks 2,4 --with-base --max-new-tokens 8 --batch-sizes 2,4 --pairs 1 "
        "--model BYTES --data-dir DATA",
        lambda line: line["same_texts"] == 1 and line["adapters"] == 2,
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
    are commands of the launcher, all else runs here."""

    def run(command: list[str], *, env: dict[str, str], **_: object) -> SimpleNamespace:
        cache = {"RANKSCOPE_CACHE": env["RANKSCOPE_CACHE"]}
        ran = launcher.run(*command[1:], environment=cache)
        assert ran.code == 0, ran.err
        return SimpleNamespace(returncode=ran.code)

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
    rows: Rows, ours: Segment, loss: Callable[..., torch.Tensor], is_joined: bool
) -> None:
    alone = by(Loop(loss, is_joined=is_joined), rows)()
    assert difference(ours.found["losses"], alone.found["losses"]) <= RELATIVE
    assert alone.work == ours.work > 0


def test_sides_take_turns_and_a_machine_that_slows_down_favors_neither() -> None:
    """By hand: every turn takes a tenth longer than the one before; ours does twice the work."""
    order = ""

    def side(name: str, work: float) -> Turn:
        def turn() -> Segment:
            nonlocal order
            order += name
            return Segment(1.1 ** len(order), work)

        return turn

    ratios = take_turns(side("a", 2), side("b", 1), 4).ratios
    assert order == "abbaabba"
    assert ratios == pytest.approx([2 * 1.1, 2 / 1.1, 2 * 1.1, 2 / 1.1])


def test_an_interval_of_a_median_is_between_order_statistics() -> None:
    """Six values leave out the median with a probability of 2 / 2^6 = 0.03, nine values without
    the outermost two with 2 (1 + 9) / 2^9 = 0.04."""
    assert interval_of_median([3.0, 1.0, 2.0, 5.0, 4.0]) is None
    assert interval_of_median([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == (1.0, 6.0)
    assert interval_of_median([*map(float, range(9))]) == (1.0, 7.0)


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
