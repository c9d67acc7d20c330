"""The forgetting alarm inside the trainers that it is made for, on the pocket model."""

import random
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import write_rows
from datasets import Dataset
from finished_studies import pocket
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import rankscope
from rankscope.data.registry import named_tasks
from rankscope.errors import UserError
from rankscope.extensions.callback.forgetting import ForgettingCallback, live_base
from rankscope.models.model_folder import pocket_folder
from rounding import rounding, terms_of_pass

PAGE = Path(__file__).parents[3] / "docs" / "using-the-result.md"
TASKS = ["pocket_cloze", "pocket_gsm"]  # Options are scored in one, numbers written in the other
ITEMS = 12
TOKENIZER = AutoTokenizer.from_pretrained(pocket_folder())
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")
COMMON: dict[str, Any] = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "learning_rate": 2e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}
ROUNDING = rounding(terms_of_pass(AutoConfig.from_pretrained(pocket_folder())))
TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second")


def rows() -> list[tuple[str, str, str]]:
    """(question, right answer, wrong answer)"""
    read = named_tasks()["pocket_med"].read
    assert read is not None
    fields = [row.fields for row in list(read()[0]["train"])[:32]]
    return [
        (f["question"], " " + f["choices"][f["answer"]], " " + f["choices"][f["answer"] - 1])
        for f in fields
    ]


def make_trainer(kind: str, folder: Path, callbacks: list[Any], **changes: Any) -> Trainer:
    """``sft`` and ``dpo`` train an adapter, ``plain`` all weights, on 32 rows."""
    torch.manual_seed(0)
    settings = {"output_dir": str(folder), **COMMON, **changes}
    model, given = pocket(), {"processing_class": TOKENIZER, "callbacks": callbacks}
    if kind == "plain":
        encoded = [TOKENIZER(q + right, return_token_type_ids=False) for q, right, _ in rows()]
        data = Dataset.from_list([{**e, "labels": list(e["input_ids"])} for e in encoded])
        arguments = TrainingArguments(**settings | {"per_device_train_batch_size": 1})
        return Trainer(model, arguments, train_dataset=data, **given)
    if kind == "sft":
        pairs = [{"prompt": q, "completion": right} for q, right, _ in rows()]
        given |= {"train_dataset": Dataset.from_list(pairs), "peft_config": LORA}
        return SFTTrainer(model, SFTConfig(**settings), **given)
    triples = [{"prompt": q, "chosen": right, "rejected": wrong} for q, right, wrong in rows()]
    trained: Any = get_peft_model(model, LORA)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:  # an adapter from before, of which TRL makes the reference
            parameter.data.normal_(0, 0.05)
    data = Dataset.from_list(triples)
    return DPOTrainer(trained, args=DPOConfig(**settings), train_dataset=data, **given)


def alarm(tasks: list[Any] = TASKS, **changes: Any) -> ForgettingCallback:
    settings = {"every": 2, "max_loss": 0.99, "max_items": ITEMS} | changes
    return ForgettingCallback(tasks, **settings)


def logged(trainer: Trainer) -> list[dict[str, float]]:
    """What the alarm logged, step by step."""
    return [entry for entry in trainer.state.log_history if "forgetting/seconds" in entry]


@pytest.mark.parametrize("kind", ["sft", "dpo", "plain"])
def test_figures_are_those_of_eval_on_the_saved_model(kind: str, tmp_path: Path) -> None:
    callback = alarm()
    trainer = make_trainer(kind, tmp_path / "out", [callback])
    trainer.train()
    if kind == "dpo":
        assert "ref" in trainer.model.peft_config
    saved = tmp_path / "saved"
    trainer.save_model(str(saved))
    if kind == "plain":
        TOKENIZER.save_pretrained(saved)
    settings = {"dtype": "float32", "device": "cpu"}
    out = tmp_path / "scores"
    records, scores = rankscope.score("pocket", TASKS, [str(saved)], settings, out, max_items=ITEMS)
    start, *_, end = logged(trainer)
    assert [entry["step"] for entry in logged(trainer)] == [0, 2, 4]
    for score in scores:
        name = score.record.task
        if score.model == "base":
            assert start[f"forgetting/{name}/base"] == score.record.score
            continue
        change = score.change
        assert change is not None
        assert end[f"forgetting/{name}/score"] == score.record.score
        found = [end[f"forgetting/{name}/{key}"] for key in ("change", "low", "high")]
        assert found == [change.value, change.low, change.high]
    # Item by item.
    (given,) = [trial.spec.trial_id for trial in records.trials]
    now: Any = callback._evaluate(trainer.model, trained=True)
    stored = rankscope.load(out).records.results
    for model, evaluations in (("base", callback.base), (given, now)):
        for name, (_, results) in evaluations.items():
            others = stored[model, name, "test"]
            for key in ("item_id", "prediction", "score", "generated"):
                values = [[getattr(item, key) for item in items] for items in (results, others)]
                assert values[0] == values[1]
            logprobs = [[item.gold_logprob for item in items] for items in (results, others)]
            assert logprobs[0] == pytest.approx(logprobs[1], rel=ROUNDING)


def comparable(trainer: Trainer) -> list[dict[str, float]]:
    """What the trainer itself logged, without times."""
    own = [entry for entry in trainer.state.log_history if "forgetting/seconds" not in entry]
    return [{k: v for k, v in entry.items() if k not in TIMES} for entry in own]


@pytest.mark.parametrize("kind", ["sft", "dpo", "plain"])
def test_training_is_the_same_to_the_bit(kind: str, tmp_path: Path) -> None:
    """Under dropout and gradient checkpointing, whose random numbers a scoring could move."""
    weights, logs = [], []
    for number, callbacks in enumerate(([], [alarm()])):
        trainer = make_trainer(kind, tmp_path / str(number), callbacks, gradient_checkpointing=True)
        trainer.train()
        logs.append(comparable(trainer))
        weights.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
    assert len([entry for entry in logs[0] if "loss" in entry]) == 4
    assert logs[0] == logs[1]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def state_of(trainer: Trainer) -> dict[str, Any]:
    """Whatever of a model, and around it, a scoring could leave changed."""
    model = trainer.model
    config = model.config
    backend = TOKENIZER.backend_tokenizer
    return {
        "parameters": {
            name: (id(p), p.requires_grad, p.grad is None, p._version)
            for name, p in model.named_parameters()
        },
        "modules": {
            name: (id(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
            for name, m in model.named_modules()
        },
        "adapters": (model.active_adapters, sorted(model.peft_config)),
        "config": (config.use_cache, config._attn_implementation),
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "tokenizer": (backend.truncation, backend.padding),
    }


def test_the_model_is_left_as_it_is(tmp_path: Path) -> None:
    callback = alarm()
    trainer = make_trainer("dpo", tmp_path, [callback], gradient_checkpointing=True)
    trainer.train()
    trainer.model.train()
    backend = TOKENIZER.backend_tokenizer
    backend.enable_truncation(7)
    try:
        before = state_of(trainer)
        names = {"model": trainer.model, "processing_class": TOKENIZER}
        callback.on_train_begin(trainer.args, trainer.state, trainer.control, **names)
        callback.on_step_end(trainer.args, trainer.state, trainer.control, **names)
        assert state_of(trainer) == before
        scored, own = (
            {p.data_ptr() for p in model.parameters()}
            for model in (live_base(trainer.model, TOKENIZER).model, trainer.model)
        )
        assert scored < own  # no second copy of a weight
    finally:
        backend.no_truncation()


class Listener(TrainerCallback):
    """What a tracker is given."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.logs.append(dict(kwargs["logs"]))


def test_trackers_are_given_what_is_logged(tmp_path: Path) -> None:
    before, after = Listener(), type("Second", (Listener,), {})()
    trainer = make_trainer("plain", tmp_path, [before, alarm(TASKS[:1]), after])
    trainer.train()
    keys = ("forgetting/seconds", "forgetting/pocket_cloze/score", "loss")
    for listener in (before, after):
        counts = [sum(key in logs for logs in listener.logs) for key in keys]
        assert counts == [3, 2, 4]  # none of the trainer's own is lost
    assert [entry["epoch"] for entry in logged(trainer)] == [0, 2 / 32, 4 / 32]


@pytest.fixture
def harmful(tmp_path: Path) -> dict[str, Any]:
    """A rate at which the pocket model forgets, on more items."""
    return {"kind": "plain", "folder": tmp_path, "learning_rate": 3e-2, "max_steps": 6}


def test_the_limit_stops_at_the_first_look_beyond_it(harmful: dict[str, Any]) -> None:
    task = ["pocket_cloze"]
    watched = make_trainer(callbacks=[alarm(task, max_items=64)], **harmful)
    watched.train()  # no warning: no loss is above .99
    assert watched.state.global_step == 6
    first = logged(watched)[1]
    change, high = (first[f"forgetting/pocket_cloze/{key}"] for key in ("change", "high"))
    assert change < high < 0
    certain, possible = -high - 1e-9, -change - 1e-9
    for limit, at_limit, text, stops in (
        (certain, "stop", "wholly beyond the limit of", True),
        (certain, "warn", "wholly beyond the limit of", False),
        (possible, "stop", "but it may be chance", False),
    ):
        callback = alarm(task, max_items=64, max_loss=limit, at_limit=at_limit)
        trainer = make_trainer(callbacks=[callback], **harmful)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            trainer.train()
        said = [str(one.message) for one in caught if "ForgettingCallback" in str(one.message)]
        assert said[0].startswith("ForgettingCallback, step 2:\n  pocket_cloze: ")
        assert text in said[0]
        assert (trainer.state.global_step == 2) == stops


def test_weights_that_are_not_finite_are_beyond_any_limit(tmp_path: Path) -> None:
    callback = alarm(TASKS[:1], every=1, at_limit="stop")
    trainer = make_trainer("plain", tmp_path, [callback], learning_rate=1e38)
    with pytest.warns(UserWarning, match="its weights are not finite"):
        trainer.train()
    assert trainer.state.global_step < 4


def test_a_checkpoint_is_no_untouched_base(tmp_path: Path) -> None:
    every = {"save_strategy": "steps", "save_steps": 2}
    make_trainer("plain", tmp_path, [], max_steps=2, **every).train()
    trainer = make_trainer("plain", tmp_path, [alarm(TASKS[:1])], **every)
    with pytest.warns(UserWarning, match="so the model of step 2 is the base"):
        trainer.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in logged(trainer)] == [2, 4]


@pytest.mark.parametrize(
    ("tasks", "changes", "message"),
    [
        (["pocket_clozee"], {}, r"task 'pocket_clozee': found no task.*'pocket_cloze'"),
        (["arc_easy"], {"data_dir": "/nowhere"}, r"task 'arc_easy'.*/nowhere"),
        ([{"name": "mine"}], {}, r"task 'mine': found no task of this name"),
        ([], {}, r"tasks: found \[\], expected one or more"),
        ("arc_easy", {}, r"tasks is 'arc_easy', but must be a list such as"),
        ([{"name": "a", "scorrer": "x"}], {}, r"tasks\.0\.scorrer is not a key.*'scorer'"),
        (["pocket_cloze"], {"max_loss": 2}, r"max_loss: found 2, expected .*0\.02 is 2 points"),
        (["pocket_cloze"], {"max_loss": float("nan")}, r"max_loss: found nan"),
        (["pocket_cloze"], {"every": 0}, r"every: found 0, expected optimizer steps, 1 or more"),
        (["pocket_cloze"], {"max_items": 0}, r"max_items is 0, but must be greater than"),
        (["pocket_cloze"], {"at_limit": "halt"}, r"at_limit: found 'halt', expected 'warn' or"),
        (
            ["pocket_clozee", "pocket_general"],
            {"max_loss": -1, "every": True},
            r"(?s)3 faults.*every: found True.*max_loss: found -1.*'pocket_clozee'",
        ),
    ],
)
def test_arguments_that_cannot_be_used(tasks: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ForgettingCallback(tasks, **changes)


def test_a_task_without_rows_is_refused_before_the_first_step(tmp_path: Path) -> None:
    own = {"name": "mine", "test": str(write_rows(tmp_path / "rows.jsonl", []))}
    trainer = make_trainer("plain", tmp_path, [alarm([own])])
    with pytest.raises(UserError, match=r"rows\.jsonl"):
        trainer.train()
    assert trainer.state.global_step == 0


def begin(model: Any, tokenizer: Any = TOKENIZER) -> ForgettingCallback:
    """What a trainer of this model does first."""
    settings = TrainingArguments("unused", use_cpu=True, report_to="none")
    callback, names = alarm(TASKS[:1]), {"model": model, "processing_class": tokenizer}
    callback.on_train_begin(settings, TrainerState(), TrainerControl(), **names)
    return callback


def test_other_methods_and_names_of_adapters_are_scored(given_models: Path) -> None:
    folders = [given_models / name for name in ("ia3", "lora")]
    settings = {"dtype": "float32", "device": "cpu"}
    _, scores = rankscope.score(
        "pocket", TASKS[:1], [*map(str, folders)], settings, max_items=ITEMS
    )
    expected = {score.model: score.record.score for score in scores}
    assert len(set(expected.values())) > 1
    for folder in folders:
        model = PeftModel.from_pretrained(pocket(), folder, adapter_name="mine")
        callback = begin(model)
        now: Any = callback._evaluate(model, trained=True)
        found = [of["pocket_cloze"][0].score for of in (callback.base, now)]
        assert found == [expected["base"], expected[folder.name]]


def test_models_that_cannot_be_scored_are_named() -> None:
    with pytest.raises(UserError, match=r"without a tokenizer.*processing_class=tokenizer"):
        begin(pocket(), None)
    injected = inject_adapter_in_model(LORA, pocket())
    with pytest.raises(UserError, match=r"adapters in a model that is no PeftModel"):
        begin(injected)
    heads = LoraConfig(target_modules=["q_proj"], modules_to_save=["norm"])
    for config, message in (
        (
            PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
            r"\['default'\], PEFT's PROMPT_TUNING",
        ),
        (
            PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
            r"\['default'\], PEFT's PREFIX_TUNING",
        ),
        (LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa"), "changes the base's"),
        (heads, r"adapter 'default': found modules_to_save = \['norm'\]"),
    ):
        with pytest.raises(UserError, match=message):
            begin(get_peft_model(pocket(), config))
    packed = AutoModelForCausalLM.from_pretrained(
        pocket_folder(), quantization_config=BitsAndBytesConfig(load_in_4bit=True)
    )
    with pytest.raises(UserError, match=r"quantize: 4bit.*expected a CUDA device"):
        begin(get_peft_model(packed, LORA))
    model = pocket()
    model.lm_head = torch.nn.Identity()
    with pytest.raises(UserError, match=re.escape("no plain weight 'lm_head.weight' of shape")):
        begin(model)


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = PAGE.read_text("utf-8").partition("## A forgetting alarm for your own training")[2]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").symlink_to(pocket_folder())
    write_rows(tmp_path / "rows.jsonl", [{"prompt": q, "completion": a} for q, a, _ in rows()[:8]])
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    here = 'SFTConfig("out", use_cpu=True, bf16=False, report_to="none")'
    code = re.sub(r'SFTConfig\("out"\)', here, found[1])
    values: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), values)  # noqa: S102
    assert "forgetting/common_facts/change" in logged(values["trainer"])[-1]
