"""What the shared base was before a PEFT method changed it in place, and the way back to it."""

from collections.abc import Mapping

import torch
from torch import nn

from rankscope.errors import IntegrityError


class BaseSnapshot:
    """A model as it was: its modules, and where the values of its parameters are.

    Nothing is copied. What PEFT puts in place of a module, and values that it puts in place of a
    parameter's, are taken out again by :meth:`restore`; a parameter that is itself to be trained
    gets values of its own first (:meth:`lend`).
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.attributes = set(vars(model))
        self.children = {module: dict(module._modules) for module in model.modules()}
        self.values = {parameter: parameter.data for parameter in model.parameters()}
        self.places = [
            (module, name, parameter)
            for module in model.modules()
            for name, parameter in module._parameters.items()
        ]
        self.checksum = self.sum()

    def sum(self) -> int:
        """Sum of all bits of all values, read as whole numbers: moves when a weight moves."""
        total = 0
        for values in self.values.values():
            whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
            total += int(values.view(whole[values.element_size()]).sum(dtype=torch.int64))
        return total

    def lend(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Give those of ``parameters`` that are the model's own a copy of their values to train."""
        for parameter in parameters.values():
            if parameter in self.values:
                parameter.data = parameter.data.clone()

    def share(self) -> None:
        """Take copies back from parameters that were lent one and have not changed."""
        for parameter, values in self.values.items():
            if parameter.data is not values and torch.equal(parameter.data, values):
                parameter.data = values

    def restore(self) -> None:
        """Put everything back.

        Raises:
            IntegrityError: the weights are not bit for bit what they were.
        """
        for module, children in self.children.items():
            module._modules.clear()
            module._modules.update(children)
        for module, name, parameter in self.places:
            module._parameters[name] = parameter
        for parameter, values in self.values.items():
            parameter.data = values
            parameter.grad = None
            parameter.requires_grad_(False)
        for name in set(vars(self.model)) - self.attributes:
            delattr(self.model, name)
        self.model.eval()
        if self.sum() != self.checksum:
            raise IntegrityError(
                "the PEFT method wrote into the base's own weights, which all trials share: this "
                "run cannot go on; run it again without that method"
            )
