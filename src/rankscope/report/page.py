"""Common parts of all pages: templates, inert data, and a file that is replaced in one step."""

import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from rankscope.formatting import CONFIDENCES, duration, number, percent, safe_text
from rankscope.records import Provenance, Record
from rankscope.report.charts.figure import Figure
from rankscope.report.style import dark_colors
from rankscope.report.table_formats import html_table

# Plotly reads a few tags inside its texts; the figures write these.
_FOREIGN_TAG = re.compile(r"<(?!/?(?:b|br|extra)>)")


def render_page(
    template: str,
    figures: Sequence[Figure],
    ranks: Iterable[int],
    provenance: Provenance,
    **values: object,
) -> str:
    """Render a template with everything inside the page: plotly.js, styles, script, figures.

    A page with plots holds the part of plotly.js that draws them, packed; its script unpacks it.

    The content security policy of the page forbids every request. Text from data reaches the page
    through one filter (``safe_text``, then the escaping of Jinja), or as JSON that cannot end its
    script element.
    """
    return (
        _environment()
        .get_template(template)
        .render(
            provenance=provenance,
            plotly=Markup(_packed_plotly() if any(f.plot is not None for f in figures) else ""),
            style=Markup(_source("answer.css") + _source("page.css")),
            script=Markup(_source("page.js")),
            figures_json=embedded({f.key: figure_data(f) for f in figures if f.plot is not None}),
            dark_json=embedded(dark_colors(ranks)),
            **values,
        )
    )


def _packed_plotly() -> str:
    """Return plotly.js, its cartesian bundle, as base64 of gzip."""
    bundle = files("rankscope.report") / "plotly" / "plotly-cartesian.min.js.gz"
    return b64encode(bundle.read_bytes()).decode()


def render_fragment(template: str, **values: object) -> str:
    """Render a part of a page for a notebook; its styles reach nothing outside it."""
    style = _source("answer.css").replace(":root", ".rankscope")
    text = _environment().get_template(template).render(**values)
    return f'<div class="rankscope"><style>\n{style}</style>\n{text}</div>\n'


def figure_data(figure: Figure) -> dict[str, object]:
    plot = figure.plot.to_plotly_json() if figure.plot is not None else {"data": [], "layout": {}}
    # Plotly's template has colors without a dark partner, and every figure would repeat it.
    layout = {key: value for key, value in plot["layout"].items() if key != "template"}
    return {
        "data": plain(plot["data"]),
        "layout": plain(layout),
        "choices": [list(choice.traces) for choice in figure.choices],
        "file": f"rankscope-{figure.key}",
    }


def plain(value: Any) -> Any:
    """Reduce a value to JSON types; six significant digits are more than a screen shows."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.generic):  # as columns of whole numbers hold them
        return plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.6g}") if value - value == 0 else None
    if isinstance(value, str):
        return _FOREIGN_TAG.sub("&lt;", safe_text(value))
    return value


def embedded(value: object) -> Markup:
    """Write JSON for a script element: no character of it can end the element or start another."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


@cache
def _environment() -> Environment:
    filters: dict[str, Callable[..., object]] = {
        "number": number,
        "duration": duration,
        "percent": percent,
        "facts": _facts,
        "html_table": html_table,
        "whole": lambda text: escape(safe_text(text, len(text))),
    }
    return template_environment(
        lambda value: safe_text(value, 20_000), filters, autoescape=True, lstrip_blocks=True
    )


def template_environment(
    shown: Callable[[object], str], filters: Mapping[str, Callable[..., object]], **options: Any
) -> Environment:
    """Make Jinja's environment for the templates; ``shown`` turns every printed value into text."""
    environment = Environment(
        loader=PackageLoader("rankscope.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        # Every printed value passes here first, so none can be forgotten.
        finalize=lambda value: value if isinstance(value, Markup) else shown(value),
        **options,
    )
    environment.filters |= filters
    environment.globals["confidences"] = CONFIDENCES
    return environment


def _source(name: str) -> str:
    return (files("rankscope.report") / "templates" / name).read_text("utf-8")


def _facts(record: Record) -> list[tuple[str, str]]:
    """Return the plain fields of a record as (name, value)."""
    fields = record.model_dump(exclude={"schema_version", "libraries"})
    return [
        (field.replace("_", " "), number(value) if isinstance(value, int) else str(value))
        for field, value in fields.items()
    ]
