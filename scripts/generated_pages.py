"""Write the generated parts of docs/: keys of the study file, methods, presets and verbs.

A part is between ``<!-- generated: NAME -->`` and ``<!-- end -->``; the rest of a page stays. NAME
is the class of a section of the study file, ``methods``, ``presets`` or ``verbs``.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer.main
from typer import Context

import rankscope.cli
from rankscope.config.presets import PRESETS
from rankscope.config.section import ConfigSection
from rankscope.config.study import StudyConfig
from rankscope.models.methods import all_methods
from rankscope.train.objectives import objectives

DOCS = Path(__file__).parents[1] / "docs"
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def table(*rows: Iterable[str]) -> str:
    """Write rows as a Markdown table, the first as its head."""
    head, *others = ([cell.replace("|", r"\|") for cell in row] for row in rows)
    return "".join(f"|{'|'.join(row)}|\n" for row in (head, ["---"] * len(head), *others))


def markdown(docstring: str) -> str:
    """Put a docstring on one line, with single backquotes."""
    return " ".join(docstring.replace("``", "`").split())


def with_default(key: str, schema: dict[str, Any]) -> str:
    """Return ``key: default`` as a file has it; the key alone for None, [] and a section."""
    default = schema.get("default")
    if isinstance(default, list) and len(default) == 1:  # "rank: 8" and "rank: [8]" are the same
        default = default[0]
    if default in (None, []) or isinstance(default, dict):
        return f"`{key}`"
    text = str(default).removesuffix(".0")
    return f"`{key}: {text.lower() if isinstance(default, bool) else text}`"


def meaning(schema: dict[str, Any]) -> str:
    """Return a key's description, with all words that it may be if the description lacks some."""
    text, words = markdown(schema["description"]), list[str]()
    for option in schema.get("anyOf", [schema]):
        words += [word for word in option.get("enum", [option.get("const")]) if word]
    default = schema.get("default")
    others = [f"`{word}`" for word in words if word != default]
    if all(word in text for word in others):
        return text
    return f"{text} {'Or' if isinstance(default, str) else 'One of'} {', '.join(others)}."


def sections(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every section of a JSON schema."""
    if isinstance(schema, dict):
        if "properties" in schema:
            yield schema
        for below in schema.values():
            yield from sections(below)
    if isinstance(schema, list):
        for below in schema:
            yield from sections(below)


def keys(section: dict[str, Any]) -> str:
    """Write the table of a section's keys."""
    required = section.get("required", ())
    rows = (
        (f"`{key}` (required)" if key in required else with_default(key, schema), meaning(schema))
        for key, schema in section["properties"].items()
    )
    return table(("key: default", "meaning"), *rows)


def verbs() -> str:
    """Write the help of every verb: its sentences, its example, its arguments and options."""
    commands = typer.main.get_command(rankscope.cli.app).commands  # type: ignore[attr-defined]
    shown = {name: command for name, command in commands.items() if not command.hidden}
    options = {name: records(command) for name, command in shown.items()}
    times = Counter(record for of_verb in options.values() for record in of_verb)
    several = [record for record, number in times.items() if number > 2]
    texts = []
    for name, command in shown.items():
        paragraphs = [shell(part) for part in command.help.partition("\b")[0].strip().split("\n\n")]
        sentences = " ".join(part for part in paragraphs if not part.startswith("Example: "))
        (example,) = (part[9:] for part in paragraphs if part.startswith("Example: "))
        texts += [f"### {name}", sentences, f"```sh\n{example.replace('`', '')}\n```"]
        own = [record for record in options[name] if record not in several]
        texts += [table(("option", "meaning"), *own).rstrip()] if own else []
    where = ([name for name in options if record in options[name]] for record in several)
    verbs_of = ("all" if names == [*options] else ", ".join(names) for names in where)
    shared = [(*record, names) for record, names in zip(several, verbs_of, strict=True)]
    head = ("option of several verbs", "meaning", "verbs")
    return "\n\n".join([table(head, *shared).rstrip(), *texts]) + "\n"


def records(command: Any) -> list[tuple[str, str]]:
    """Return the arguments and options of a verb as its help writes them."""
    found = (parameter.get_help_record(Context(command)) for parameter in command.params)
    return [(f"`{words.replace(' range', '')}`", shell(text)) for words, text in found]


def shell(text: str) -> str:
    """Put a help text on one line, options as code."""
    escaped = markdown(text).replace("<", "&lt;")
    code = r"'((?:rankscope|init) [a-z -]+)'|(?<![\w`-])(--[a-z][a-z-]*)"
    return re.sub(code, lambda found: f"`{found[1] or found[2]}`", escaped)


@cache
def parts() -> dict[str, str]:
    """Return every generated part by its name."""
    kinds: list[type[ConfigSection]] = [StudyConfig]
    kinds += [kind.settings_type for kind in objectives().values()]
    methods = ((f"`{method.name}`", method.summary) for method in all_methods())
    presets = ((f"`{name}`", purpose) for name, purpose in PRESETS.items())
    return {
        **{s["title"]: keys(s) for kind in kinds for s in sections(kind.model_json_schema())},
        "methods": table(("method", "meaning"), *methods),
        "presets": table(("preset", "question"), *presets),
        "verbs": verbs(),
    }


def generated(page: str) -> str:
    """Return the text of a page with its generated parts as they are now."""
    texts = parts()
    return PART.sub(lambda found: f"{found[1]}\n{texts.get(found[2], '')}\n", page)


if __name__ == "__main__":
    for page in DOCS.glob("*.md"):
        page.write_text(generated(page.read_text("utf-8")), "utf-8")
