"""The fine-tuning methods by name: one file each, and the registry that lists them.

Study files, records, labels, memory estimates and the documentation all ask this registry. Import
it freely: it loads neither torch nor transformers nor PEFT.
"""

from rankscope.errors import did_you_mean
from rankscope.models.methods.dora import DoraMethod
from rankscope.models.methods.eva import EvaMethod
from rankscope.models.methods.full import FullMethod
from rankscope.models.methods.lora import LoraMethod
from rankscope.models.methods.lora_plus import LoraPlusMethod
from rankscope.models.methods.method import Method
from rankscope.models.methods.nested import NestedMethod
from rankscope.models.methods.peft import PeftMethod
from rankscope.models.methods.pissa import PissaMethod
from rankscope.models.methods.rslora import RsLoraMethod

_METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        LoraMethod(),
        RsLoraMethod(),
        LoraPlusMethod(),
        DoraMethod(),
        PissaMethod(),
        EvaMethod(),
        NestedMethod(),
        FullMethod(),
        PeftMethod(),
    )
}


def register_method(method: Method) -> None:
    """Make a method available under its name, in place of one that had it."""
    _METHODS[method.name] = method


def get_method(name: str) -> Method:
    """The method of a name; ValueError without one."""
    if name in _METHODS:
        return _METHODS[name]
    hint = did_you_mean(name, _METHODS)
    raise ValueError(f"method {name!r}: expected one of {', '.join(_METHODS)}{hint}")


def get_lora_method(name: str) -> LoraMethod:
    method = get_method(name)
    if not isinstance(method, LoraMethod):
        raise ValueError(f"method {name!r} has no low-rank adapter")
    return method


def all_methods() -> tuple[Method, ...]:
    return tuple(_METHODS.values())
