"""Features of the base against a slow way, the screens' ends, and the verb."""

import json
import shutil
from pathlib import Path
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F
from command_line import rankscope
from pocket_study import changed, small_study, study_file
from tiny_models import base_of, tiny_llama
from toy_training import ATTENTION, toy_rows

from rankscope.cli.render.prediction import backtest_tables, prediction_tables
from rankscope.cli.terminal import print_result
from rankscope.config.study import StudyConfig, TrainConfig
from rankscope.errors import UserError
from rankscope.models.multi_lora import target_linears
from rankscope.predict.backtest import backtest, backtest_study, past_record, score_predictors
from rankscope.predict.features import (
    features_of,
    input_variance,
    loss_and_gradients,
    open_base,
    predict_tasks,
    token_batches,
)
from rankscope.predict.screens import measured_curves, subset_study
from rankscope.records import (
    Backtest,
    BacktestTask,
    RankPrediction,
    Split,
    StudyRecords,
    TaskPrediction,
)
from rankscope.store import Ledger

TRUNCATED = changed("evaluate", truncated_ranks=[2], cross_domain=[])
LORA = {"method": "lora", "rank": [2, 8], "lr": 2e-3}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predicted")
    small_study(folder, arms=[LORA], seeds=[0, 1], **TRUNCATED).run(folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def screened(finished: Path) -> tuple[Backtest, Path]:
    """The backtest of the study, of one without ranks and of one whose rank 8 diverges, and the
    folder of the study's subset."""
    folder = finished.parent
    diverging = [{"method": "lora", "rank": [2, 4], "lr": 2e-3}, LORA | {"rank": 8, "lr": 1e9}]
    for name, arms in ("full", [{"method": "full", "lr": 5e-4}]), ("diverged", diverging):
        small_study(folder, arms=arms, seeds=[0]).run(folder / name)
    folders = [folder / "full", folder / "diverged", finished]
    return backtest(folders, folder / "screens"), folder / "screens" / "out"


def load(out: Path) -> StudyRecords:
    with Ledger.open(out, write=False) as ledger:
        return ledger.load()


def test_the_gradient_is_that_of_the_mean_loss_and_the_base_stays_frozen() -> None:
    base, rows = base_of(tiny_llama()), toy_rows(10)
    targets = target_linears(base.model, ATTENTION)
    before = {name: layer.weight.detach().clone() for name, layer in targets.items()}
    batches = list(token_batches(rows, 40))
    assert [row for batch in batches for row in batch] == rows
    assert len(batches) > 2
    loss, gradients = loss_and_gradients(base, targets, batches)
    model = tiny_llama()
    losses = []
    for row in rows:
        logits = model(torch.tensor([row.input_ids])).logits[0]
        for t, labeled in enumerate(row.is_label):
            if labeled:
                losses.append(F.cross_entropy(logits[t - 1], torch.tensor(row.input_ids[t])))
    mean = torch.stack(losses).mean()
    mean.backward()
    assert loss == pytest.approx(float(mean.detach()), rel=1e-5)
    for name, gradient in zip(targets, gradients, strict=True):
        slow = model.get_submodule(name).weight.grad
        assert isinstance(slow, torch.Tensor)
        assert float((gradient - slow).norm()) <= 1e-4 * float(slow.norm())
        assert torch.equal(targets[name].weight, before[name])
        assert targets[name].weight.grad is None
        assert not targets[name].weight.requires_grad


def test_all_directions_together_hold_all_of_the_inputs_variance() -> None:
    base, rows = base_of(tiny_llama()), toy_rows(40)
    targets = target_linears(base.model, ATTENTION)
    shares = input_variance(base, targets, [rows], (1, 8, 64))
    assert 0 < shares[1] < shares[8] < shares[64]
    assert shares[64] == pytest.approx(1, abs=1e-3)  # of 64 inputs


def test_features_are_counts_of_the_rows_and_scores_of_the_base(finished: Path) -> None:
    inputs = small_study(finished.parent, arms=[LORA], seeds=[0, 1], **TRUNCATED).check()
    found = features_of(inputs, open_base(inputs), inputs.trials[0], (2, 8))
    rows = inputs.data.rows["pocket_med"].rows
    assert found.num_rows == len(rows) == 512
    assert found.num_label_tokens == sum(sum(row.is_label) for row in rows)
    # 4 layers x 4 matrices of 128 x 128: 4 x 4 x 256 r.
    assert found.lora_parameters == {2: 8192, 8: 32768}
    study = load(finished)
    assert found.base_score == study.evals["base", "pocket_med", "validation"].score
    assert 1 <= found.gradient_stable_rank <= found.gradient_effective_rank <= 128


def test_a_study_of_rows_is_predicted_at_its_most_rows(tmp_path: Path) -> None:
    """The ranks are compared there, and a tenth of these is the screen's."""
    arms = [{**LORA, "rows": [16, 64]}]
    inputs = small_study(tmp_path, arms=arms, seeds=[0]).check()
    (prediction,) = predict_tasks(inputs, open_base(inputs))
    assert prediction.features.num_rows == 64
    assert all(arm.rows is None for arm in subset_study(inputs.config, {"pocket_med": 64}).arms)


def answers(task: BacktestTask) -> dict[str, RankPrediction]:
    return {p.predictor: p for p in task.prediction.predictions}


def test_the_whole_adapter_is_the_end_of_the_truncation_screen(finished: Path) -> None:
    """Cut to its own rank it scores what it scored; the truth beside it is the trained curve."""
    (task,) = backtest_study(finished)
    study = load(finished)

    def score(rank: int, split: Split) -> float:
        trials = [t.spec.trial_id for t in study.trials if t.spec.rank == rank]
        return fmean(study.evals[i, "pocket_med", split].score for i in trials)

    assert task.curve == pytest.approx({2: score(2, "test"), 8: score(8, "test")})
    found = answers(task)
    assert {"capacity", "always_16", "axolotl_table", "truncation", "full_study"} <= set(found)
    assert not any(name.startswith("subset") for name in found)
    # Sixteen items after eight steps: no screen can tell. Their scores are checked on the curves.
    curves = measured_curves(study, "pocket_med")
    assert set(curves) == {"trained", "truncated"}
    for curve in curves.values():
        assert curve[8].tuned.mean() == pytest.approx(score(8, "validation"))
        base = study.evals["base", "pocket_med", "validation"].score
        assert curve[8].reference.mean() == pytest.approx(base)
    assert curves["trained"][2].tuned.mean() == pytest.approx(score(2, "validation"))


def test_a_subset_is_the_same_study_on_a_tenth_of_rows_and_steps() -> None:
    full = {"method": "full", "lr": 1e-4}
    config = StudyConfig.model_validate(
        {
            "name": "s",
            "model": "pocket",
            "tasks": ["pocket_med", {"name": "pocket_law", "max_train_rows": 40}],
            "arms": [LORA | {"replay": {"task": "own", "share": 0.5}}, full],
            "seeds": [3, 4],
            "train": {"tokens": 4000, "checkpoint_every": 5},
            "evaluate": {
                "retention": ["pocket_cloze", {"name": "own", "train": "rows.jsonl"}],
                "scales": [0.5],
                "max_items": 20,
            },
            "strategy": "adaptive",
            "until": 0.9,
            "objective": {"max_forgetting": 0.1},
        }
    )
    subset = subset_study(config, {"pocket_med": 512, "pocket_law": 40})
    assert [task.max_train_rows for task in subset.tasks] == [51, 4]
    assert (subset.train.tokens, subset.train.max_steps) == (400, None)
    assert subset.arms == config.arms[:1]
    assert (subset.seeds, subset.evaluate.max_items) == ([3, 4], 20)
    assert subset.evaluate.retention == subset.evaluate.scales == []
    assert [task.name for task in subset.evaluate.cross_domain] == ["own"]  # it is replayed
    assert subset.evaluate.truncated_ranks == [2]
    assert subset.train.checkpoint_every is None
    by_steps = config.model_copy(update={"train": TrainConfig(max_steps=3, epochs=2)})
    assert subset_study(by_steps, {"pocket_med": 5, "pocket_law": 4}).train.max_steps == 2


def test_the_screens_of_a_subset_join_the_backtest(
    finished: Path, screened: tuple[Backtest, Path]
) -> None:
    """Their arms are scored on the full study's items."""
    result, screen = screened
    (task,) = result.tasks
    assert {"subset_screen", "subset_power_law", "subset_truncation"} <= set(answers(task))
    subset = load(screen)
    assert {(t.train.rows, t.train.steps) for t in subset.trials if t.train} == {(51, 2)}
    key = ("base", "pocket_med", "validation")
    assert subset.items[key].item_ids == load(finished).items[key].item_ids


def test_a_study_without_ranks_or_with_one_that_has_no_score_is_left_out_by_name(
    screened: tuple[Backtest, Path],
) -> None:
    """Else a predictor could name a rank whose score nobody knows."""
    full, diverged = screened[0].skipped
    assert full.endswith("full")
    assert diverged.endswith("diverged")
    assert len(screened[0].tasks) == 1


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("max_items: 16", "max_items: 12", "pocket_med"),
        (
            "- name: pocket_med\n",
            "- name: pocket_med\n  max_train_rows: 9\n",
            "4 trials .* rows, .* put",
        ),
        ("float32", "bfloat16", "4 trials .*, expected the base, dtype"),
    ],
)
def test_a_study_that_is_no_longer_the_same_is_refused(
    finished: Path, tmp_path: Path, before: str, after: str, said: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    resolved = copy / "study.resolved.yaml"
    text = resolved.read_text()
    assert before in text
    resolved.write_text(text.replace(before, after))
    with pytest.raises(UserError, match=said):
        backtest_study(copy)


def test_nothing_is_guessed_where_scores_are_nats(tmp_path: Path) -> None:
    """Options have a chance to be guessed, their log p has none."""
    task = {"name": "pocket_med", "scorer": "loss"}
    inputs = small_study(tmp_path, tasks=[task], arms=[LORA]).check()
    found = features_of(inputs, open_base(inputs), inputs.trials[0], (2, 8))
    assert found.base_score < 0
    assert found.chance is None
    (record,) = (record for record in inputs.task_records if record.name == "pocket_med")
    assert record.chance is None


def test_the_verb_predicts_beside_the_past_record(
    finished: Path, screened: tuple[Backtest, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    screen = screened[1]
    file = study_file(finished.parent, arms=[LORA], seeds=[0, 1], **TRUNCATED)
    outcome = rankscope("predict", file, "--json", "--screen", screen)
    assert outcome.code == 0
    printed = json.loads(outcome.out)
    (task,) = printed["tasks"]
    assert task["ranks"] == [2, 8]
    named = {p["predictor"]: p["why"] for p in task["predictions"]}
    assert named["subset_screen"].startswith("cannot tell")  # two steps teach nothing
    assert {row["predictor"] for row in printed["past_record"]} >= {"always_16", "subset_screen"}
    # The same, and without a screen, as text.
    whole = TaskPrediction.model_validate(task)
    rules = whole.model_copy(update={"predictions": whole.predictions[:3]})
    record = past_record()
    print_result(prediction_tables([whole, rules], record, score_predictors(record)))
    said = " ".join(capsys.readouterr().out.split())
    for words in ("These are hypotheses", "capacity", "axolotl table", "cannot tell", "--screen"):
        assert words in said


def test_the_verb_backtests(
    finished: Path, screened: tuple[Backtest, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = rankscope("predict", "--backtest", finished, "--json")
    assert outcome.code == 0
    printed = json.loads(outcome.out)
    assert {row["tasks"] + row["silent"] for row in printed["scores"]} == {1}
    assert Backtest.model_validate(printed["backtest"]).tasks[0].family == "pocket"
    print_result(backtest_tables(screened[0], score_predictors(screened[0].tasks)))
    said = " ".join(capsys.readouterr().out.split())
    assert "small, pocket_med: best rank" in said
    assert "Past record: 1 task in 1 family." in said


def test_bad_input_of_the_verb(tmp_path: Path) -> None:
    file = study_file(tmp_path, arms=[{"method": "full", "lr": 1e-4}])
    for words, said in (
        ((file,), "no arm with a rank"),
        ((file, file), "expected one"),
        (("--backtest", tmp_path), "no study here"),
        ((file, "--screen", tmp_path / "screen"), "no arm with a rank"),
        (("--backtest", tmp_path, "--set", "seeds=0"), "found --set"),
        ((tmp_path / "none.yaml",), "No such file"),
    ):
        outcome = rankscope("predict", *words)
        assert outcome.code == 2
        assert said in outcome.told
