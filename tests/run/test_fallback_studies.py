"""Studies on models whose rows run alone, by the command; and arms on experts."""

from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import rankscope, settings
from evaluation_worlds import tokenizer
from families import FAMILIES, stock
from peft import PeftModel
from pocket_study import SETTINGS, results, run_interrupted, study_file
from transformers import AutoModelForCausalLM

from rankscope import load
from rankscope.evaluate.scorers.generation import stop_strings
from rankscope.records import TrialRecords
from rankscope.run.study import Study

KINDS = {"convolutions": "LFM2", "sinks and experts": "gpt-oss"}
EXPERTS = "mlp.experts.gate_up_proj"
TOKENS = 4  # of a written answer
pytestmark = pytest.mark.filterwarnings("ignore:.*is falling back to its reference")


def written_study(folder: Path, family: str) -> Path:
    """The file of a study on a stored tiny model: two ranks, all weights, and experts if any."""
    stock(family).save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    method = {"peft": {"peft_type": "LORA", "target_parameters": [EXPERTS]}}
    arms: list[dict[str, Any]] = [
        {"method": "lora", "rank": 2, "lr": 2e-2},
        {"method": "lora", "rank": 8, "lr": 2e-2, "dropout": 0.1},
        {"method": "full", "lr": 5e-3},
        *([{"method": method, "lr": 2e-2}] if family == "gpt-oss" else []),
    ]
    if targets := FAMILIES[family][2]:
        arms = [arm if arm["method"] == "full" else {**arm, "targets": [*targets]} for arm in arms]
    return study_file(
        folder,
        model=str(folder / "model"),
        arms=arms,
        seeds=[0],
        train={**SETTINGS["train"], "max_steps": 3, "gradient_accumulation": 1},
        evaluate={"cross_domain": ["pocket_gsm"], "max_items": 4, "max_new_tokens": TOKENS},
    )


@pytest.fixture(scope="module")
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study file beside what its run left in ``out``."""
    file = written_study(tmp_path_factory.mktemp("study"), KINDS[request.param])
    ran = rankscope("run", file, "--out", file.parent / "out")
    assert ran.code == 0, ran.told
    return file


def exported(file: Path, trial: TrialRecords) -> Any:
    """The trial's model in plain transformers and PEFT."""
    place = file.parent / trial.spec.trial_id
    made = rankscope("export", file.parent / "out", trial.spec.trial_id, "--out", place)
    assert made.code == 0, made.told
    whole = place if trial.spec.is_full else file.parent / "model"
    model: Any = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
    return model if trial.spec.is_full else PeftModel.from_pretrained(model, str(place))


@torch.no_grad()
def logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    """(T, vocabulary) of one row by itself."""
    out: torch.Tensor = model.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return out.log_softmax(-1)


def check_scores(file: Path, trial: TrialRecords) -> None:
    """The ledger's log p of options and written answers are the exported model's."""
    data, found = Study.load(file).check().data, load(file.parent / "out").records.results
    model, encoder, written = exported(file, trial), data.encoder, ""
    if trial.spec.peft:
        assert all(p.any() for name, p in model.named_parameters() if "experts.lora_B" in name)
    for name in ("pocket_med", "pocket_gsm"):
        stored = found[trial.spec.trial_id, name, "test"]
        before = found["base", name, "test"]
        for item, score, base in zip(data.tasks[name].test, stored, before, strict=True):
            prompt = encoder.prompt_ids(item)
            for option, choice in enumerate(item.choices):
                ids = prompt + encoder.answer_ids(choice, item)
                steps = logprobs(model, ids)[len(prompt) - 1 : -1]
                expected = sum(float(p[t]) for p, t in zip(steps, ids[len(prompt) :], strict=True))
                assert score.option_logprobs[option] == pytest.approx(expected, rel=1e-5)
            if item.choices:
                assert base.option_logprobs != pytest.approx(score.option_logprobs, rel=1e-4)
            ids = list(prompt)
            for _ in range(TOKENS if score.generated else 0):
                ids.append(int(logprobs(model, ids)[-1].argmax()))
            answer = list(takewhile(lambda i: i not in encoder.stop_ids, ids[len(prompt) :]))
            text = tokenizer().decode(answer)
            for stop in stop_strings(encoder, data.tasks[name].spec, [item]):
                text = text.partition(stop)[0]
            assert score.generated is None or score.generated == text
            written += score.generated or ""
    assert written


@pytest.mark.parametrize("finished", KINDS, indirect=True)
def test_a_study_comes_to_what_transformers_and_peft_make_of_its_exports(finished: Path) -> None:
    for verb in ("check", "plan"):
        said = rankscope(verb, finished)
        assert said.code == 0, said.told
        # 512 rows of 17,466 tokens: 4,096 hold 120.
        assert "in up to 120 times as many passes as train.batch_tokens=4,096" in said.told
    assert "tokens a second of training, measured here" in said.told
    has_experts = "GptOss" in said.told
    assert has_experts == (f"target_parameters: [{EXPERTS}]}}}} trains them" in said.told)
    study = load(finished.parent / "out").records
    assert {t.status for t in study.trials} == {"done"}
    assert len(study.trials) == 3 + has_experts
    for trial in study.trials:
        assert len(trial.train.losses) == 3
        check_scores(finished, trial)


@pytest.mark.parametrize("finished", ["convolutions"], indirect=True)
def test_a_study_stopped_again_and_again_comes_to_the_same(finished: Path, tmp_path: Path) -> None:
    user = run_interrupted(Study.load(finished), tmp_path / "out", every=6)
    assert user.stops > 2
    assert results(tmp_path / "out") == results(finished.parent / "out")


@pytest.mark.parametrize("finished", ["sinks and experts"], indirect=True)
def test_shards_are_refused(finished: Path) -> None:
    refused = rankscope("check", finished, *settings("train.devices=2"))
    assert refused.code == 2, refused.told
    assert "run alone" in refused.told
