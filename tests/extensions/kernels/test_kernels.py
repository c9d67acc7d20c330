"""Compiled norms, rotary embeddings and gates against PyTorch's own operations.

Most models are Gemmas, so that functions are compiled once for each dtype. Gemma's norms multiply
by 1 + w, its heads have some, and its gate is a GELU. Mistral, as Llama, multiplies by w; its gate
is a SiLU.
"""

import os
import weakref
from collections.abc import Callable
from functools import partial
from inspect import unwrap
from pathlib import Path
from threading import Thread

import pytest
import torch
from architectures import stock
from launcher import Launcher
from tiny_models import IDS, assert_close, base_of, logits_of
from torch import Tensor
from torch._inductor import config as inductor_config
from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir
from toy_training import EVERY_METHOD, losses, protocol, toy_rows

from rankscope.device import release_freed_memory
from rankscope.errors import UserError
from rankscope.extensions.kernels import compiled
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.kernels import PLAIN, kernels_of, use_kernels
from rankscope.train.loop import train_group
from rounding import rounding, terms_of_pass

ROWS = [Row(IDS, range(len(IDS))), Row(IDS[:3], [2]), Row(IDS[2:], [0, 5])]


def logits_and_gradient(base: Base) -> tuple[Tensor, Tensor]:
    """Of the embeddings of three rows."""
    seen: list[Tensor] = []

    def keep(_: object, __: object, out: Tensor) -> Tensor:
        seen.append(out.detach().requires_grad_())
        return seen[-1]

    handle = base.model.get_input_embeddings().register_forward_hook(keep)
    logits = base.logits(RowBatch.of(ROWS, base.device))
    handle.remove()
    logits.float().logsumexp(1).sum().backward()
    assert seen[0].grad is not None
    return logits.detach(), seen[0].grad


def gap(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("name", "norms"), [("Gemma 3", 13), ("Mistral", 5)])
def test_values_and_gradients_are_those_of_the_model(name: str, norms: int) -> None:
    base = base_of(stock(name))
    names = list(base.model.state_dict())
    expected = logits_and_gradient(base)
    use_kernels(base.model, "compiled")
    # The norms, and of both layers the attention and the gate.
    assert sum("forward" in vars(layer) for layer in base.model.modules()) == norms + 2 * 2
    tolerance = rounding(terms_of_pass(base.model.config))
    for ours, theirs in zip(logits_and_gradient(base), expected, strict=True):
        assert_close(ours, theirs, tolerance)
    assert list(base.model.state_dict()) == names


def test_in_bfloat16_both_ways_are_as_far_from_float32() -> None:
    expected = logits_and_gradient(base_of(stock("Gemma 3")))
    rounded = base_of(stock("Gemma 3").bfloat16())
    plainly = logits_and_gradient(rounded)
    use_kernels(rounded.model, "compiled")
    for ours, theirs, right in zip(logits_and_gradient(rounded), plainly, expected, strict=True):
        assert 0 < gap(ours, right) <= 1.5 * gap(theirs, right)
    use_kernels(rounded.model, PLAIN)
    again = logits_and_gradient(rounded)
    assert all(torch.equal(a, b) for a, b in zip(plainly, again, strict=True))


def test_a_token_alone_has_the_numbers_that_it_has_among_others() -> None:
    layer = stock("Gemma 3").bfloat16().requires_grad_(False).model.layers[0]
    rotary = unwrap(type(layer.self_attn).forward).__globals__[compiled.ROTARY]

    def draw(*shape: int) -> Tensor:
        return torch.randn(97, *shape, generator=generator).bfloat16().requires_grad_()

    generator = torch.Generator().manual_seed(0)
    calls: list[tuple[Callable[..., object], list[Tensor]]] = [
        (lambda x: compiled.NORM(layer.input_layernorm, x), [draw(32)]),
        (lambda x, y: compiled.GATE(layer.mlp, x, y), [draw(48), draw(48)]),
        (lambda *x: compiled.ROTATE(rotary, *x), [draw(4, 16), draw(2, 16), draw(16), draw(16)]),
    ]
    for call, tensors in calls:
        whole = both_ways(call, tensors)
        for span in (slice(0, 1), slice(5, 7), slice(30, 96)):
            parts = both_ways(call, [x[span].detach().requires_grad_() for x in tensors])
            for part, of_all in zip(parts, whole, strict=True):
                assert torch.equal(part, of_all[span])


def both_ways(call: Callable[..., object], tensors: list[Tensor]) -> list[Tensor]:
    """Results, and gradients if those of the results are what they are."""
    found = call(*tensors)
    results = [found] if isinstance(found, Tensor) else list(found)  # type: ignore[call-overload]
    gradients = torch.autograd.grad(
        results, tensors, [x.detach().cos() for x in results], allow_unused=True
    )
    return [*results, *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize("twice", [False, True])
def test_a_group_of_every_method_trains_as_plainly(twice: bool) -> None:
    """Also with gradient checkpointing, which runs each layer twice."""
    steps = protocol(epochs=1, gradient_checkpointing=twice)
    plain, fused = base_of(stock("Gemma 3")), base_of(stock("Gemma 3"))
    use_kernels(fused.model, "compiled")
    run = partial(train_group, trials=EVERY_METHOD, rows=toy_rows(), config=steps)
    found, expected = run(fused), run(plain)
    for ours, theirs in zip(found.states, expected.states, strict=True):
        assert losses(ours) == pytest.approx(losses(theirs), rel=1e-4)
        assert ours.failure is None


def test_a_copy_to_train_computes_plainly() -> None:
    base = base_of(stock("Gemma 3"))
    expected = logits_of(base)
    use_kernels(base.model, "compiled")
    copied = base.copied()
    assert kernels_of(copied.model) == "compiled"
    use_kernels(base.model, PLAIN)  # the copy's layers are its own
    assert_close(logits_of(copied), expected)
    assert kernels_of(copied.trainable_copy().model) == PLAIN
    weight = copied.model.get_parameter("model.norm.weight")
    weight.requires_grad_()  # as PEFT's layer norm tuning
    copied.logits(RowBatch.of(ROWS, copied.device)).sum().backward()
    assert weight.grad is not None
    use_kernels(base.model, "compiled")
    freed = weakref.ref(base.copied().model)  # its layers refer to themselves
    release_freed_memory()
    assert freed() is None


CACHED = """
import os
import torch
from torch._dynamo.utils import counters
from rankscope.extensions.kernels import compiled
os.environ.pop(compiled.CACHE, None)
compiled._configure()
gate = torch.nn.ReLU()
gate.act_fn = torch.nn.SiLU()
with torch.no_grad():
    compiled.GATE(gate, torch.ones(3, 8), torch.ones(3, 8))
print(*(counters["inductor"][f"fxgraph_cache_{kind}"] for kind in ("miss", "hit")))
"""


@pytest.mark.usefixtures("minutes")
def test_another_process_compiles_nothing(launcher: Launcher, tmp_path: Path) -> None:
    files = set[Path]()
    for expected in ("1 0", "0 1"):
        launcher.start(code=CACHED, environment={"RANKSCOPE_CACHE": str(tmp_path)})
        done = launcher.outcome()
        assert done.out.strip() == expected, done.err
        written = set((tmp_path / "compiled").rglob("*"))
        assert expected == "1 0" or written == files
        files = written


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is in the way of Rankscope's folder, or of the user's."""
    monkeypatch.setenv("RANKSCOPE_CACHE", str(tmp_path))
    (tmp_path / "compiled").touch()
    for place in ("", str(tmp_path / "compiled" / "folder")):
        monkeypatch.setenv(compiled.CACHE, place)
        compiled._configure()
        assert compiled.CACHE not in os.environ
        assert cache_dir() == default_cache_dir()


def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the check before anything is compiled, and after it."""
    monkeypatch.setenv(compiled.CACHE, str(tmp_path))
    torch._dynamo.reset()
    compiled.check_compiler.cache_clear()
    function = compiled.CompiledFunction(lambda _, x: x.tanh() * 3, 1)
    checks = partial(use_kernels, stock("Gemma 3"), "compiled")
    for call in (checks, partial(function, None, torch.ones(3))):
        refused = pytest.raises(UserError, match=r"train\.kernels: .*InvalidCxxCompiler")
        with inductor_config.patch({"cpp.cxx": ("/bin/false",)}), refused:
            call()


def test_a_backward_pass_in_a_thread_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA's is, where the compiler's settings are not those of this thread."""
    limits = []

    def doubled(owner: object, x: Tensor) -> Tensor:
        limits.append(torch._dynamo.config.recompile_limit)
        return 2 * x

    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    compiled._configure()
    x = torch.ones(2, 3, requires_grad=True)
    thread = Thread(target=compiled.CompiledFunction(doubled, 1)(None, x).sum().backward)
    thread.start()
    thread.join()
    assert limits == 2 * [compiled.MOST_GRAPHS]
    assert x.grad is not None
