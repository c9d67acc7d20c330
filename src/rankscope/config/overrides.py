"""``--set arms.0.rank=[2,8]``: values from the command line replace those of the study file."""

from typing import Any

import yaml

from rankscope.config.section import Location, dotted, section_at, short_repr
from rankscope.config.study import StudyConfig
from rankscope.config.yaml_lines import Document, Mark, compose
from rankscope.errors import UserError

MAX_DEPTH = 20  # Parts of a key; study files have five
OVERRIDE = "--set "  # Start of the source of every value that came from an override


def apply_override(document: Document, override: str) -> None:
    """Set the value of ``a.b.0=VALUE`` in the document; VALUE is read as YAML.

    Creates sections that the file leaves out, and expands a short form (``model: pocket``) if the
    override reaches into it. Does not check keys: the validation of the whole study does, and can
    suggest what was meant.
    """
    source = OVERRIDE + (override if override.isprintable() else short_repr(override))
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts) or len(parts) > MAX_DEPTH:
        raise UserError(
            f"{source}: expected KEY=VALUE, such as train.epochs=1 or arms.0.rank=[2,8]"
        )
    try:
        node = compose(text, source)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{source}: the value is not valid YAML: {problem}") from error
    container: Any = document.values
    location: Location = ()
    for part in parts[:-1]:
        entry = _entry_of(container, part, location, source)
        location = (*location, entry)
        enter(document, container, location, source)
        container = container[entry]
    entry = _entry_of(container, parts[-1], location, source)
    location = (*location, entry)
    document.forget(location)
    document.marks[location] = document.key_marks[location] = Mark(source, 0)
    container[entry] = None if node is None else document.read(node, location)


def _entry_of(container: Any, part: str, location: Location, source: str) -> str | int:
    """The key or position of an entry, which a list must already have."""
    if isinstance(container, dict):
        return part
    if not part.isdecimal() or len(part) > 9 or int(part) >= len(container):
        raise UserError(
            f"{source}: {dotted(location)} has no entry {short_repr(part)}: expected a number from "
            f"0 to {len(container) - 1}"
        )
    return int(part)


def enter(document: Document, container: Any, location: Location, source: str) -> None:
    """Make the entry at ``location``, in ``container``, a mapping or list."""
    entry = location[-1]
    value = container.get(entry) if isinstance(container, dict) else container[entry]
    if isinstance(value, dict | list):
        return
    if value is None:
        container[entry] = {}
        document.marks[location] = document.key_marks[location] = Mark(source, 0)
        return
    section = section_at(location, StudyConfig)
    long_form = section.from_short_form(value) if section and isinstance(value, str) else None
    if long_form is None:
        raise UserError(f"{source}: {dotted(location)} is {short_repr(value)}, which has no keys")
    container[entry] = long_form
    # The values keep the mark of the file, so that a relative path still starts at its folder.
    for key in long_form:
        place = (*location, key)
        document.marks[place] = document.key_marks[place] = document.marks[location]
