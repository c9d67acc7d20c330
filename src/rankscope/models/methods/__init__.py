"""The fine-tuning methods by name: one file each, and the registry that lists them.

A file of this folder is all that a method needs, and it can be deleted. Study files, records,
labels, memory estimates and the documentation ask this registry. Import it freely: it loads neither
torch nor transformers nor PEFT.
"""

import pkgutil
from importlib import import_module

from rankscope.models.methods.lora import LoraMethod
from rankscope.models.methods.method import Method


def _methods_of_files() -> dict[str, Method]:
    """The methods that the files of this folder define, by name; ``lora``, the default, first."""
    found = [LoraMethod()]
    for file in pkgutil.iter_modules(__path__):
        module = import_module(f"{__name__}.{file.name}")
        for value in vars(module).values():
            is_own = isinstance(value, type) and value.__module__ == module.__name__
            if is_own and issubclass(value, Method) and value not in (Method, LoraMethod):
                found.append(value())
    return {method.name: method for method in found}


_METHODS = _methods_of_files()


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
