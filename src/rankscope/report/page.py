"""What every page of ours shares: templates, inert data, one file that is replaced in one step."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rankscope.errors import UserError
from rankscope.filesystem import replace_text
from rankscope.formatting import duration, number, safe_text
from rankscope.records import Record
from rankscope.report.charts.figure import Figure

# Plotly reads a few tags inside its texts; these are the ones the figures themselves write.
_FOREIGN_TAG = re.compile(r"<(?!/?(?:b|br|extra)>)")


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a page with its figures."""

    key: str
    title: str
    lead: str
    figures: tuple[Figure, ...]


def write_page(path: Path, render: Callable[[], str]) -> None:
    """Write one page, replacing ``path`` in one step.

    Raises:
        UserError: ``path`` is there and no file (a folder, a pipe, a device), or its folder is not.
        DiskFull: no space; what was there stays.
    """
    if (path.exists() and not path.is_file()) or not path.parent.is_dir():
        raise UserError(
            f"{path}: cannot write the report here; expected a file in an existing folder"
        )
    replace_text(path, render())


def figure_data(figure: Figure) -> dict[str, object]:
    """What the page's script needs to draw one figure."""
    plot = figure.plot.to_plotly_json() if figure.plot is not None else {"data": [], "layout": {}}
    # Plotly's template holds colours that have no dark partner, and every figure would repeat it.
    layout = {key: value for key, value in plot["layout"].items() if key != "template"}
    return {
        "data": plain(plot["data"]),
        "layout": plain(layout),
        "choices": [list(choice.traces) for choice in figure.choices],
        "file": f"rankscope-{figure.key}",
    }


def plain(value: Any) -> Any:
    """JSON types only: six significant digits are more than a screen shows."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if value - value == 0 else None
    if isinstance(value, str):
        return _FOREIGN_TAG.sub("&lt;", safe_text(value))
    return value


def embedded(value: object) -> Markup:
    """JSON for a script element: no character of it can end the element or start another."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def templates() -> Environment:
    """Where pages come from; it escapes, and knows the report's way to write numbers."""
    environment = Environment(
        loader=PackageLoader("rankscope.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Every value the templates print passes here first, so none can be forgotten.
        finalize=lambda value: value if isinstance(value, Markup) else safe_text(value, 20_000),
    )
    environment.filters |= {"number": number, "duration": duration, "facts": facts}
    return environment


def source(environment: Environment, name: str) -> str:
    """A style sheet or script of ours as it is."""
    if environment.loader is None:
        raise AssertionError("the environment is made with a loader")
    return environment.loader.get_source(environment, name)[0]


def facts(record: Record) -> list[tuple[str, str]]:
    """A record's plain fields as (name, value) for a definition list."""
    fields = record.model_dump(exclude={"schema_version", "libraries"})
    return [
        (field.replace("_", " "), number(value) if isinstance(value, int) else str(value))
        for field, value in fields.items()
    ]
