"""A whole small study on a real model and real questions, and its adapter in plain PEFT."""

import json
from pathlib import Path

import torch
from peft import PeftModel
from pocket_study import UNANALYZED
from transformers import AutoModelForCausalLM

from rankscope.config.study import ModelConfig
from rankscope.models.adapters.folder import load_adapter
from rankscope.models.base import Row, RowBatch
from rankscope.models.load import load_base
from rankscope.run.study import Study
from rankscope.store import weights_path

EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2-arc.yaml"


def test_its_adapter_gives_the_same_logits_in_plain_peft(
    model_folder: Path, data_dir: Path, tmp_path: Path
) -> None:
    """The example, small: rank 32 on q and v, 32 rows, 4 items per task, float32."""
    overrides = [
        f"data_dir={data_dir}", "tasks=[{name: arc_easy, max_train_rows: 32}]",
        "arms=[{method: lora, rank: 32, lr: 5e-4, targets: [q_proj, v_proj]}]",
        "evaluate.cross_domain=[]", "evaluate.retention=[piqa]", "evaluate.max_items=4",
        f"analyze={json.dumps(UNANALYZED)}", "dtype=float32", "device=cpu",
    ]  # fmt: skip
    study = Study.load(EXAMPLE, overrides).run(tmp_path)
    assert [(t.spec.rank, t.status) for t in study.trials] == [(32, "done")]
    losses = [point.loss for point in study.trials[0].train.losses]  # single steps go up and down
    assert sum(losses[2:]) < sum(losses[:2])
    base = load_base(ModelConfig(path=str(model_folder)), torch.device("cpu"), torch.float32)
    trial = study.trials[0].spec
    path = tmp_path / weights_path(trial)
    base.multi_lora.attach(load_adapter(path, trial.trial_id, study.model))
    ids = base.tokenizer(
        "Question: Which of these is a source of light?\nAnswer: the Sun"
    ).input_ids
    keep = range(len(ids))
    plain = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    with torch.inference_mode():
        ours = base.logits(RowBatch.of([Row(ids, keep, trial.trial_id)], base.device))
        bare = base.logits(RowBatch.of([Row(ids, keep)], base.device))
        theirs = PeftModel.from_pretrained(plain, path).eval()(torch.tensor([ids])).logits[0]
    assert float((ours - theirs).norm()) < 1e-5 * float(theirs.norm())
    assert float((ours - bare).norm()) > 1e-3 * float(bare.norm())
