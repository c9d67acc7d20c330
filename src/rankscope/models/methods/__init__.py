"""The registry of fine-tuning methods: files of this folder, and those of other packages.

A method needs one file. Study files, records, labels, memory estimates and the documentation ask
here. Import it freely: it loads neither torch nor transformers nor PEFT.
"""

from functools import cache

from rankscope.models.methods.lora import LoraMethod
from rankscope.models.methods.method import Method
from rankscope.registry import parts


@cache
def methods() -> dict[str, Method]:
    """Return all methods by name: ``lora``, the default, first."""
    kinds: dict[str, type[Method]] = {LoraMethod.name: LoraMethod, **parts(Method, __name__)}
    return {name: kind() for name, kind in kinds.items()}


def get_method(name: str) -> Method:
    """Return the method of a name. Raises ValueError: there is none."""
    if name in methods():
        return methods()[name]
    raise ValueError(f"method {name!r}: expected one of {', '.join(methods())}")


def get_lora_method(name: str) -> LoraMethod:
    method = get_method(name)
    if not isinstance(method, LoraMethod):
        raise ValueError(f"method {name!r} has no low-rank adapter")
    return method


def all_methods() -> tuple[Method, ...]:
    return tuple(methods().values())


def lora_methods() -> tuple[LoraMethod, ...]:
    return tuple(method for method in all_methods() if isinstance(method, LoraMethod))
