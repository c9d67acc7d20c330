"""Rankscope: how much LoRA rank is enough on your model and your data, and what it costs.

>>> import rankscope
>>> rankscope.Study.load("study.yaml").run("studies/mine")
>>> study = rankscope.load("studies/mine")
>>> print(study.answer)
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rankscope.run.study import Study
    from rankscope.tools.evaluate import score
    from rankscope.tools.frames import load

    __version__: str

_MODULES = {
    "Study": "rankscope.run.study",
    "load": "rankscope.tools.frames",
    "score": "rankscope.tools.evaluate",
}
"""Module of each public name, imported at first use: most of these modules import torch."""

__all__ = ["Study", "__version__", "load", "score"]


def __getattr__(name: str) -> object:
    value: object
    if name == "__version__":
        value = version("rankscope")
    elif name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
