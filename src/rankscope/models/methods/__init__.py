"""The fine-tuning methods by name: one file each, and the registry that lists them.

A file of this folder is all that a method needs, and it can be deleted. Study files, records,
labels, memory estimates and the documentation ask this registry. Import it freely: it loads neither
torch nor transformers nor PEFT.
"""

from rankscope.models.methods.lora import LoraMethod
from rankscope.models.methods.method import Method
from rankscope.registry import subclasses_in

_METHODS: dict[str, Method] = {
    kind.name: kind() for kind in (LoraMethod, *subclasses_in(__name__, Method))
}
"""``lora``, the default, first."""


def register_method(method: Method) -> None:
    """Make a method available under its name, in place of one that had it."""
    _METHODS[method.name] = method


def get_method(name: str) -> Method:
    """The method of a name; ValueError without one."""
    if name in _METHODS:
        return _METHODS[name]
    raise ValueError(f"method {name!r}: expected one of {', '.join(_METHODS)}")


def get_lora_method(name: str) -> LoraMethod:
    method = get_method(name)
    if not isinstance(method, LoraMethod):
        raise ValueError(f"method {name!r} has no low-rank adapter")
    return method


def all_methods() -> tuple[Method, ...]:
    return tuple(_METHODS.values())


def lora_methods() -> tuple[LoraMethod, ...]:
    return tuple(method for method in _METHODS.values() if isinstance(method, LoraMethod))
