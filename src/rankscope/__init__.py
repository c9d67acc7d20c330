"""Rankscope: how much LoRA rank is enough on your model and your data, and what it costs.

>>> import rankscope
>>> records = rankscope.Study.load("study.yaml").run("studies/mine")
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rankscope.run.study import Study
    from rankscope.tools.evaluate import EvalRequest, score
    from rankscope.tools.inspect import inspect

    __version__: str

__all__ = ["EvalRequest", "Study", "__version__", "inspect", "score"]


def __getattr__(name: str) -> object:
    """The public names, read when asked for: the conductor behind ``Study`` imports torch."""
    value: object
    if name == "Study":
        value = import_module("rankscope.run.study").Study
    elif name == "inspect":
        value = import_module("rankscope.tools.inspect").inspect
    elif name in ("EvalRequest", "score"):
        value = getattr(import_module("rankscope.tools.evaluate"), name)
    elif name == "__version__":
        value = version("rankscope")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
