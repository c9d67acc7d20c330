"""Which section stands at a place of a file."""

from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from rankscope.config.section import Section
from rankscope.config.yaml_lines import Location


def section_at(location: Location, whole: type[Section]) -> type[Section] | None:
    """The section class at a place of a file of ``whole``, such as ``("arms", 0)``."""
    section: type[Section] | None = whole
    inside_list: type[Section] | None = None
    for part in location:
        if isinstance(part, int):
            section, inside_list = inside_list, None
            continue
        field = section.model_fields.get(part) if section is not None else None
        annotation = without_none(field.annotation) if field is not None else None
        section = as_section(annotation)
        inside_list = (
            as_section(get_args(annotation)[0]) if get_origin(annotation) is list else None
        )
    return section


def without_none(annotation: Any) -> Any:
    """``list[X]`` of ``list[X] | None``, constraints left out; anything else as it is."""
    parts = [part for part in get_args(annotation) if part is not NoneType]
    if get_origin(annotation) in (Union, UnionType) and len(parts) == 1:
        return get_args(parts[0])[0] if get_origin(parts[0]) is Annotated else parts[0]
    return annotation


def as_section(annotation: Any) -> type[Section] | None:
    """The annotation itself where it is a section."""
    is_section = isinstance(annotation, type) and issubclass(annotation, Section)
    return annotation if is_section else None
