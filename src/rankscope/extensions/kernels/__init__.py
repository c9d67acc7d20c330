"""Kernels for the frozen base: functions that ``torch.compile`` makes, and liger-kernel's.

No run on a GPU has met them. ``compiled`` ran on processors, Liger's in Triton's interpreter.
"""

from typing import Any

from rankscope.models.kernels import Kernels


class Compiled(Kernels):
    name = "compiled"
    start_seconds = 30.0

    def forwards(self, model: Any) -> Any:
        from rankscope.extensions.kernels.compiled import forwards

        return forwards(model)


class Liger(Compiled):
    name = "liger"

    def forwards(self, model: Any) -> Any:
        from rankscope.extensions.kernels.liger import liger_forwards

        return liger_forwards(model)
