"""Adapters of strangers in ``inspect`` and ``shrink``: what is spoiled is named, and none acts."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import rankscope
from html_elements import Elements
from peft_adapters import saved_adapter
from tiny_models import tiny_llama

from faults import controls, message_of
from rankscope.models.adapters.folder import BASE_HASH
from rankscope.models.adapters.settings import WEIGHTS

from ...faults.test_adapters import DAMAGES, SLOW, configure, rewrite
from ...faults.test_hostile_text import FOLDER_NAME, FORMULA, HOSTILE, IMAGE
from ...faults.test_security import Payload, watched


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return saved_adapter(tmp_path / "adapter", tiny_llama())


def of_another_base(adapter: Path) -> None:
    rewrite(adapter, lambda tensors: None, {BASE_HASH: "f" * 64})


SPOILED: list[tuple[int, str, Callable[[Path], object]]] = [
    (4, DAMAGES["NaN"][1], lambda a: rewrite(a, DAMAGES["NaN"][0])),
    (4, "expected a readable safetensors file", lambda a: (a / WEIGHTS).write_bytes(b"junk" * 9)),
    (2, "one that was made for another base (weights ffffffffffff", of_another_base),
    (2, "timed out", lambda a: configure(a, exclude_modules=SLOW)),
    (2, "'(('", lambda a: configure(a, target_modules="((")),
]


@pytest.mark.pitfall(14, 15)
@pytest.mark.parametrize(("code", "found", "spoil"), SPOILED)
def test_a_spoiled_adapter_is_refused_by_name(
    base: Path, adapter: Path, code: int, found: str, spoil: Callable[[Path], object]
) -> None:
    spoil(adapter)
    outcome = rankscope("inspect", base, adapter)
    assert outcome.code == code, outcome
    assert str(adapter) in message_of(outcome)
    assert found in message_of(outcome)


def test_an_adapter_of_another_base_is_marked_where_it_is_forced(base: Path, adapter: Path) -> None:
    of_another_base(adapter)
    (tuned,) = json.loads(rankscope("inspect", base, adapter, "--force", "--json").out)["tuned"]
    assert tuned["other_base_forced"] is True


@pytest.mark.pitfall(17)
def test_nothing_is_unpickled_and_no_connection_opened(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    payload = pickle.dumps(Payload(tmp_path / "it ran"))
    connecting = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname")
    with watched("pickle.find_class", *connecting) as seen:
        assert rankscope("inspect", base, adapter).code == 0
        (adapter / WEIGHTS).unlink()
        (adapter / "adapter_model.bin").write_bytes(payload)
        outcome = rankscope("inspect", base, adapter)
    assert (outcome.code, seen) == (2, [])
    assert "adapter_model.bin, a pickle" in message_of(outcome)
    assert not (tmp_path / "it ran").exists()
    pickle.loads(payload)
    assert (tmp_path / "it ran").exists()


@pytest.mark.pitfall(25)
def test_a_hostile_name_steers_neither_terminal_nor_page(base: Path, tmp_path: Path) -> None:
    """Names that cannot be printed are refused where a study stores them."""
    model, out = shutil.copytree(base, tmp_path / FOLDER_NAME), tmp_path / "out"
    names = ("".join(texts).replace("/", "") for texts in ((IMAGE, FORMULA), HOSTILE[:5]))
    plain, hostile = (saved_adapter(tmp_path / name, tiny_llama()) for name in names)
    told = {
        ("inspect", model, plain, "--out", out): 0,
        ("inspect", model, hostile): 2,
        ("inspect", model, hostile / "none"): 2,
        ("shrink", hostile, "--rank", 1, "--out", tmp_path / "small"): 0,
        ("shrink", hostile / "none", "--rank", 2, "--out", tmp_path / "x"): 2,
    }
    for words, code in told.items():
        outcome = rankscope(*words)
        assert (outcome.code, controls(outcome)) == (code, set()), outcome
    page = (out / "report.html").read_text("utf-8")
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    tags = Elements(page).tags
    assert not [n for tag, names in tags for n in names if tag == "img" or n.startswith("on")]
