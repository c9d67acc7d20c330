"""Harness tasks under our engine give what the harness's HFLM gives; no task file runs code."""

import json
import random
from pathlib import Path

import lm_eval
import numpy as np
import pytest
import torch
import yaml
from evaluation_worlds import adapter, base, evaluations_of, merged, tokenizer
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from rankscope.config.study import EvaluateConfig
from rankscope.data.encode import Encoder
from rankscope.errors import UserError
from rankscope.evaluate.evaluator import Evaluation
from rankscope.extensions.harness.bridge import harness_tasks, load_harness_task
from rankscope.models.base import Base
from rankscope.models.lora import Adapter
from rankscope.records import BASE

SETTINGS = EvaluateConfig(batch_tokens=512)
ROWS = [
    {"question": "the cat sat on", "choices": ["the mat", "1", "the other mat"], "answer": 0},
    {"question": "1 2", "choices": ["3", "18 42", "日本語"], "answer": 1},
    {"question": "which cat?", "choices": ["the other", "é", "the"], "answer": 2},
    {"question": "Question", "choices": ["Answer", "the cat sat", "2"], "answer": 1},
    {"question": "and the", "choices": ["mat", "mat and cat", "18"], "answer": 0},
    {"question": "there", "choices": ["a", "b", "c c c c"], "answer": 2},
]
CHOICE = {
    "task": "toy_choice",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes")],
}
WRITTEN = {
    "task": "toy_written",
    "output_type": "generate_until",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["t"], "max_gen_toks": 12, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}
TEXT = {
    "task": "toy_text",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question}} and {{choices[0]}}",
    "metric_list": [{"metric": name} for name in ("word_perplexity", "bits_per_byte")],
}


def task_file(folder: Path, config: dict[str, object], extra: str = "") -> Path:
    """A harness task over local rows."""
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "fewshot_split": "test",
    }
    path = folder / f"{config['task']}.yaml"
    text = yaml.safe_dump({**data, **config}, allow_unicode=True) + extra
    path.write_text(text, encoding="utf-8")
    return path


def evaluate_lm_eval(
    engine: Base, source: str, models: dict[str | None, str], num_fewshot: int | None = None
) -> dict[str | None, Evaluation]:
    (config,) = harness_tasks(source)
    if num_fewshot is not None:
        config = config.model_copy(update={"num_fewshot": num_fewshot})
    task = load_harness_task(config, max_items=None)
    encoder = Encoder(engine.tokenizer, "plain", max_length=None)
    return evaluations_of(engine, encoder, task, "test", models, SETTINGS)


@pytest.fixture(scope="module")
def packed() -> tuple[Base, Adapter]:
    engine = base()
    member = adapter(engine, 4, seed=4)
    engine.multi_lora.attach(member)
    return engine, member


def stock_results(
    engine: Base, member: Adapter | None, path: Path, num_fewshot: int
) -> dict[str, object]:
    """The harness with its own model class, on the merged weights."""
    stock = HFLM(
        pretrained=merged(engine, member),
        tokenizer=tokenizer(),
        batch_size=2,
        max_length=256,
        device="cpu",
    )
    return lm_eval.simple_evaluate(
        model=stock,
        tasks=[str(path)],
        num_fewshot=num_fewshot,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )


@pytest.fixture
def _no_environment_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness lists the machine's packages and GPUs in every result, by starting programs."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


@pytest.mark.usefixtures("_no_environment_report")
@pytest.mark.parametrize("config", [CHOICE, WRITTEN, TEXT], ids=["choice", "written", "text"])
@pytest.mark.parametrize("num_fewshot", [0, 5])
def test_every_kind_of_task_gives_the_harness_numbers(
    tmp_path: Path, packed: tuple[Base, Adapter], config: dict[str, object], num_fewshot: int
) -> None:
    engine, member = packed
    path = task_file(tmp_path, config)
    models = {None: BASE, member.name: "trial"}
    found = evaluate_lm_eval(engine, f"lm_eval:{path}", models, num_fewshot)
    name = str(config["task"])
    for adapter_name, of in ((None, None), (member.name, member)):
        record, items = found[adapter_name]
        expected = stock_results(engine, of, path, num_fewshot)
        numbers = expected["results"][name]
        for metric, value in record.metrics.items():
            assert value == pytest.approx(numbers[f"{metric},none"], rel=1e-4)
        assert record.task == f"lm_eval:{name}"
        assert record.trial_id == models[adapter_name]
        assert (record.n, len(items)) == (len(ROWS), len(ROWS))
        assert record.num_tokens > 0
        for item, sample in zip(items, expected["samples"][name], strict=True):
            assert item.item_id == f"lm_eval:{name}/{sample['doc_id']}"
            if config is CHOICE:
                theirs = [pair[0] for pair in sample["filtered_resps"]]
                assert item.option_logprobs == pytest.approx(theirs, abs=1e-3)
                assert item.score == sample["acc"]
                assert item.gold_logprob == item.option_logprobs[sample["target"]]
            elif config is WRITTEN:
                assert item.generated == item.prediction == sample["filtered_resps"][0]
                assert item.score == sample["exact_match"]
            else:
                assert item.score == pytest.approx(sample["word_perplexity"][0], rel=1e-4)
    assert found[None][1] != found[member.name][1]


def test_global_generators_stay_where_they_were(
    tmp_path: Path, packed: tuple[Base, Adapter]
) -> None:
    path = task_file(tmp_path, CHOICE)

    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    expected = [drawn(), drawn()]
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    first = drawn()
    evaluate_lm_eval(packed[0], f"lm_eval:{path}", {None: BASE})
    assert [first, drawn()] == expected


@pytest.mark.parametrize(
    ("change", "extra", "message"),
    [
        ({}, "x: !!python/object/apply:os.getcwd []\n", "python/object/apply:os.getcwd"),
        ({"dataset_path": "./loader.py"}, "", "needs code of its own"),
        ({"dataset_path": "json", "dataset_kwargs": {"trust_remote_code": True}}, "",
         "needs code of its own"),
        ({"metric_list": [{"metric": "no_such_metric"}]}, "", "fetched as code from the hub"),
        ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "", "fetched as code"),
        ({"unsafe_code": True}, "", "runs what the model writes"),
        ({"dataset_kwargs": {"data_files": "none.jsonl"}}, "", "data set can be read"),
        ({"no_such_key": 1}, "", r"unexpected keyword.*expected a task that lm-evaluation-harness"),
        ({"doc_to_text": "{{ ''.__class__.__mro__ }}"}, "", "cannot be loaded.*unsafe"),
        ({"output_type": "generate_until", "generation_kwargs": {"do_sample": True}}, "",
         "found sampling"),
        ({"doc_to_text": "{{question * 100}}"}, "",
         r"3 of 6 prompts that do not fit .* 256 tokens"),
    ],
)  # fmt: skip
def test_task_files_that_are_refused(
    tmp_path: Path,
    packed: tuple[Base, Adapter],
    change: dict[str, object],
    extra: str,
    message: str,
) -> None:
    path = task_file(tmp_path, {**CHOICE, **change}, extra)
    with pytest.raises(UserError, match=message):
        evaluate_lm_eval(packed[0], f"lm_eval:{path}", {None: BASE})
    if "code" in message or "runs what" in message:  # in a group inside a group, too
        members = [{"group": "inner", "task": [{**CHOICE, **change}]}]
        path.write_text(yaml.safe_dump({"group": "g", "task": members}))
        with pytest.raises(UserError, match=message):
            evaluate_lm_eval(packed[0], f"lm_eval:{path}", {None: BASE})
