"""Scaled and cut forms of trained and of given models, scored beside them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from finished_studies import MITIGATED, Finished, finish, once
from pocket_study import SETTINGS, UNANALYZED
from torch import nn
from transformers import AutoModelForCausalLM

from rankscope.models.model_folder import pocket_folder
from rankscope.records import BASE, TrialSpec, Variant, trial_of
from rankscope.store import weights_path

from ...run.test_given import given_study
from ...run.test_presets_run import page_of

VARIANTS = {"scales": [0.1 + 0.2, 0.5], "truncated_ranks": [2]}  # not 0.3


@once
def varied(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    evaluate = MITIGATED["evaluate"] | VARIANTS
    return finish(tmp_path_factory.mktemp("varied"), **MITIGATED | {"evaluate": evaluate})


def test_every_trial_has_a_scaled_form_on_the_line_from_the_base(varied: Finished) -> None:
    study = varied.records
    variants = {key for key in study.evals if isinstance(key[0], Variant)}
    # Five trials at two scales; one of rank 8 and the full one cut; two tasks of two splits.
    assert len(variants) == (5 * 2 + 2) * 2 * 2
    assert {trial_of(model) for model, _, _ in variants} == {t.spec.trial_id for t in study.trials}
    between = 0
    for trial in study.trials:
        label = trial.spec.trial_id
        line = [
            np.mean([item.gold_logprob for item in study.results[model, "pocket_med", "test"]])
            for model in (BASE, *(Variant(label, "scale", x) for x in VARIANTS["scales"]), label)
        ]
        between += line in (sorted(line), sorted(line, reverse=True))
    assert between >= 3


def test_a_full_model_cut_to_a_rank_scores_as_the_base_with_that_update(
    varied: Finished, tmp_path: Path
) -> None:
    base = pocket_folder()
    cut, tuned = (
        AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32)
        for p in (base, varied.out / weights_path(full_of(varied)))
    )
    for name, layer in cut.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            delta = (tuned.get_submodule(name).weight - layer.weight).detach().double()
            U, S, V = torch.linalg.svd(delta)
            layer.weight.data += (U[:, :2] * S[:2] @ V[:2]).float()
    cut.save_pretrained(shutil.copytree(base, tmp_path / "cut"))
    assert_scores_as_cut(varied, tmp_path / "cut")


def full_of(varied: Finished) -> TrialSpec:
    (full,) = [t.spec for t in varied.records.trials if t.spec.is_full]
    return full


def assert_scores_as_cut(varied: Finished, folder: Path) -> None:
    """The model in ``folder`` scores as the fully fine-tuned one cut to rank 2."""
    evaluate = {"retention": ["pocket_cloze"], "cross_domain": ["pocket_med"]}
    few = {"evaluate": evaluate, "analyze": UNANALYZED}
    scored = given_study(folder.parent, folder, **few).run(folder.parent / "out")
    (trial,) = [t.spec.trial_id for t in scored.trials]
    for task in ("pocket_med", "pocket_cloze"):
        known = {item.item_id: item for item in scored.results[trial, task, "test"]}
        cut = Variant(full_of(varied).trial_id, "truncated", 2)
        ours = varied.records.results[cut, task, "test"]
        assert len(ours) > 5
        for item in ours:
            theirs = known[item.item_id].gold_logprob
            assert item.gold_logprob == pytest.approx(theirs, abs=1e-4)


def test_variants_are_scored_on_the_split_of_their_models(
    given_models: Path, tmp_path: Path
) -> None:
    evaluate = SETTINGS["evaluate"] | {"scales": [0.5], "split": "validation"}
    records = given_study(tmp_path, given_models / "lora", evaluate=evaluate).run(tmp_path / "out")
    assert {split for _, _, split in records.evals} == {"validation"}
    assert any(isinstance(model, Variant) for model, _, _ in records.evals)


def test_the_preset_compares_mitigations(tmp_path: Path) -> None:
    ranks = [f"arms.{n}.rank=4" for n in range(6)]
    page = page_of(
        "mitigation", [*ranks, "train.evaluate_every=1", "train.evaluate_items=4"], tmp_path
    )
    assert "Mitigations at an equal score" in page
