"""The shared base as it was before a PEFT method changed it in place, and the way back."""

from collections.abc import Mapping

import torch
from torch import nn

from rankscope.errors import IntegrityError


class BaseSnapshot:
    """A model's modules, and the storage of its parameters' values; nothing is copied.

    :meth:`restore` removes what PEFT put in place. A parameter of the base that the method trains
    itself gets a copy of its values first (:meth:`copy_for_training`).
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
        self.checksum = self.bit_sum()

    def bit_sum(self) -> int:
        """Sum of all values' bits, read as whole numbers: changes when a weight changes."""
        integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        return sum(
            int(values.view(integers[values.element_size()]).sum(dtype=torch.int64))
            for values in self.values.values()
        )

    def copy_for_training(self, parameters: Mapping[str, nn.Parameter]) -> None:
        for parameter in parameters.values():
            if parameter in self.values:
                parameter.data = parameter.data.clone()

    def drop_unchanged_copies(self) -> None:
        for parameter, values in self.values.items():
            if parameter.data is not values and torch.equal(parameter.data, values):
                parameter.data = values

    def restore(self) -> None:
        """Put everything back; IntegrityError if the weights are not bit for bit what they were."""
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
        if self.bit_sum() != self.checksum:
            raise IntegrityError(
                "the PEFT method changed the base's own weights, which all trials share, so this "
                "run cannot continue; run it again without that method"
            )
