"""A whole small study on a real model and real questions, and its adapter in plain PEFT."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rankscope.analyses.spectra.record import SpectraRecord
from rankscope.config.study import ModelConfig
from rankscope.hashing import weights_sha256
from rankscope.models.adapters.folder import load_adapter
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.load import load_base
from rankscope.records import BASE, StudyRecords
from rankscope.run.study import Study
from rankscope.store import adapter_path

EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2-arc.yaml"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smollm2")


@pytest.fixture(scope="module")
def study(model_folder: Path, data_dir: Path, out: Path) -> StudyRecords:
    """The example, small: ranks 2 and 32 on q and v, 32 rows, 8 items per task, float32."""
    overrides = [
        f"data_dir={data_dir}",
        "tasks=[{name: arc_easy, max_train_rows: 32}]",
        "arms=[{method: lora, rank: [2, 32], lr: 5e-4, targets: [q_proj, v_proj]}]",
        "evaluate.cross_domain=[]",
        "evaluate.retention=[piqa]",
        "evaluate.max_items=8",
        "dtype=float32",
        "device=cpu",
    ]
    return Study.load(EXAMPLE, overrides).run(out)


@pytest.fixture(scope="module")
def base(model_folder: Path) -> Base:
    return load_base(ModelConfig(path=str(model_folder)), torch.device("cpu"), torch.float32)


def test_every_trial_is_trained_scored_and_analyzed(
    study: StudyRecords, model_folder: Path
) -> None:
    assert study.model.sha256 == weights_sha256(model_folder)
    assert [(t.spec.rank, t.status) for t in study.trials] == [(2, "done"), (32, "done")]
    for trial in study.trials:
        assert trial.train is not None
        assert trial.train.steps == 4  # 32 rows, 8 per optimizer step
        assert len(trial.train.losses) == 4
        losses = [point.loss for point in trial.train.losses]
        # Single steps go up and down with their eight rows.
        assert sum(losses[2:]) < sum(losses[:2])
        spectra = trial.analysis(SpectraRecord)
        assert spectra is not None
        # q and v of 30 layers; the update has at most the adapter's rank.
        assert len(spectra.matrices) == 60
        rank = trial.spec.rank
        assert rank is not None
        for matrix in spectra.matrices:
            assert 0 < matrix.effective_rank <= rank * (1 + 1e-6)
    models = {BASE, *(trial.spec.trial_id for trial in study.trials)}
    report = {e.trial_id for e in study.evals.values() if (e.task, e.split) == ("arc_easy", "test")}
    assert report == models
    assert {e.task for e in study.evals.values()} == {"arc_easy", "piqa"}
    assert {e.n for e in study.evals.values()} == {8}


def test_its_adapter_gives_the_same_logits_in_plain_peft(
    study: StudyRecords, model_folder: Path, out: Path, base: Base
) -> None:
    trial = study.trials[-1].spec
    path = out / adapter_path(trial.trial_id)
    base.multi_lora.attach(load_adapter(path, trial.trial_id, study.model))
    text = "Question: Which of these is a source of light?\nAnswer: the Sun"
    ids = base.tokenizer(text).input_ids
    keep = range(len(ids))
    plain = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    with torch.inference_mode():
        ours = base.logits(RowBatch.of([Row(ids, keep, trial.trial_id)], base.device))
        bare = base.logits(RowBatch.of([Row(ids, keep)], base.device))
        theirs = PeftModel.from_pretrained(plain, path).eval()(torch.tensor([ids])).logits[0]
    assert float((ours - theirs).norm()) < 1e-5 * float(theirs.norm())
    assert float((ours - bare).norm()) > 1e-3 * float(bare.norm())
