"""The pretraining of the pocket model: its batches, its rates, and that it runs and repeats."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import pretrain_pocket


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(pretrain_pocket.pocket_config()).eval()


def test_packed_documents_do_not_see_each_other(model: LlamaForCausalLM) -> None:
    documents = [[1, 20, 30, 40, 2], [1, 50, 60, 2], [1, 70, 2]]
    packed = pretrain_pocket.pack_documents(iter(documents), num_rows=1, row_length=14)
    with torch.no_grad():
        together = model(
            input_ids=packed.ids_RL,
            position_ids=packed.positions_RL,
            attention_mask=packed.mask_R1LL,
        ).logits[0]
        start = 0
        for document in documents:
            alone = model(input_ids=torch.tensor([document])).logits[0]
            torch.testing.assert_close(
                together[start : start + len(document)], alone, atol=1e-4, rtol=1e-4
            )
            start += len(document)
    assert packed.labels_RL.tolist()[0] == [
        20, 30, 40, 2, -100, 50, 60, 2, -100, 70, 2, -100, -100, -100,
    ]  # fmt: skip


def test_a_document_that_does_not_fit_opens_the_next_row() -> None:
    packed = pretrain_pocket.pack_documents(
        iter([[1, 20, 2], [1, 30, 2], [1, 40, 2]]), num_rows=2, row_length=5
    )
    assert packed.ids_RL.tolist() == [[1, 20, 2, 0, 0], [1, 30, 2, 0, 0]]


def test_pretraining_twice_gives_the_same_weights_and_lowers_the_loss(
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = pretrain_pocket.Pretraining(num_steps=3, num_rows=2, warmup_steps=1, num_threads=1)
    first, second = (pretrain_pocket.pretrain(5, short).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = pretrain_pocket.pretrain(6, short).state_dict()
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_learning_rate_warms_up_peaks_and_ends_low() -> None:
    settings = pretrain_pocket.Pretraining(num_steps=100, warmup_steps=10, peak_lr=1.0)
    assert pretrain_pocket.pretraining_rate(0, settings) == pytest.approx(0.1)
    assert pretrain_pocket.pretraining_rate(10, settings) == pytest.approx(1.0)
    assert pretrain_pocket.pretraining_rate(99, settings) < 0.04


def test_the_script_writes_a_model_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pretrain_pocket, "check_figures", lambda *_: {"pocket_med": 0.25})
    short = pretrain_pocket.Pretraining(num_steps=2, num_rows=2, warmup_steps=1, num_threads=1)
    pretrain_pocket.main(["--out", str(tmp_path / "model")], short)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("587,904 parameters")
    assert [line.split() for line in lines[1:]] == [
        ["validation", "pocket_med", "0.250"],
        ["test", "pocket_med", "0.250"],
    ]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype == torch.float16
    assert len(AutoTokenizer.from_pretrained(tmp_path / "model")) == len(
        pretrain_pocket.vocabulary()
    )
