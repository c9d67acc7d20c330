"""Checks of lm-evaluation-harness's task files, before anything in them can run.

A YAML file is read as data. Refused are functions that it names, metrics fetched from elsewhere,
data sets with their own code, and tasks that run a model's answers.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rankscope.config.yaml_lines import ShallowLoader
from rankscope.errors import UserError, reading
from rankscope.extensions.harness import PREFIX
from rankscope.filesystem import user_path

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

FUNCTION = "!function"
PLAIN_TAG = "tag:yaml.org,2002:"
PLAIN_TYPES = frozenset(
    {"map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "binary", "set"}
)


def is_yaml(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def check_task(manager: "TaskManager", name: str, allow_functions: bool) -> tuple[str, list[Path]]:
    """Return what to load for a name, and the files that describe it, after checking all of
    them."""
    if is_yaml(name):
        path = user_path(name).resolve()
        if not path.is_file():
            raise UserError(f"task {PREFIX}{name}", "no such file", "a harness task's YAML")
        files, name = [path], str(path)
    else:
        files = _registered_files(manager, name)
    included: dict[Path, None] = {}
    for file in files:
        included |= dict.fromkeys(check_tags(file, allow_functions))
        _check_configs(file, allow_functions)
    return name, list(included)


def _registered_files(manager: "TaskManager", name: str) -> list[Path]:
    if manager.task_index.get(name) is None:
        raise UserError(
            f"task {PREFIX}{name}",
            "no task, group or tag of lm-evaluation-harness",
            "one that 'lm-eval ls tasks' lists, or a file, whose path ends in .yaml",
        )
    files: list[Path] = []
    waiting, seen = [name], set()
    while waiting:
        current = waiting.pop()
        entry = manager.task_index.get(current)
        if entry is None or current in seen:
            continue
        seen.add(current)
        if entry.yaml_path is not None:
            files.append(Path(entry.yaml_path))
        waiting += sorted(entry.tags) if entry.kind.name == "TAG" else []
        members = (entry.cfg or {}).get("task")
        waiting += _member_names(members) if isinstance(members, list) else []
    return files


def _member_names(members: Sequence[Any]) -> list[str]:
    names: list[str] = []
    for member in members:
        if isinstance(member, dict):
            inner = member.get("task")
            names += _member_names(inner) if isinstance(inner, list) else [str(inner)]
            names += [str(member["group"])] if "group" in member else []
        else:
            names.append(str(member))
    return names


def check_tags(
    path: Path, allow_functions: bool, seen: frozenset[Path] = frozenset()
) -> list[Path]:
    """Read a YAML file and its includes as tagged nodes, without constructing anything.

    Returns the files that were read.
    """
    if path in seen:
        return []
    with reading(f"task file {path}", "a readable YAML file"):
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=ShallowLoader)
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"task file {path}", expected="a mapping with 'task', 'dataset_path', ...")
    for node in walk(root):
        where = f"task file {path}, line {node.start_mark.line + 1}"
        if node.tag == FUNCTION:
            if not allow_functions:
                raise UserError(
                    where,
                    f"{FUNCTION} {node.value}, which would run Python from this file's folder",
                    "plain YAML",
                    "read that code, then allow it with --trust-task-code",
                )
        elif node.tag.removeprefix(PLAIN_TAG) not in PLAIN_TYPES:
            raise UserError(where, f"tag {node.tag!r}", "plain YAML")
    files = [path]
    for key, value in root.value:
        if key.value == "include":
            for name in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                with reading(f"task file {path}", "a file with readable paths in 'include'"):
                    included = (path.parent / name.value).resolve()
                files += check_tags(included, allow_functions, seen | {path})
    return files


def walk(root: Any) -> Iterator[Any]:
    """Yield every YAML node, mapping and list below a root, each once: an alias may form a
    cycle."""
    waiting, seen = [root], set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, yaml.MappingNode):
            waiting += [node for pair in part.value for node in pair]
        elif isinstance(part, yaml.SequenceNode):
            waiting += part.value
        elif isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _check_configs(path: Path, allow_functions: bool) -> None:
    """Refuse a task that fetches code, or runs a model's answers.

    A group's file may contain its members, so every mapping of the file is checked.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    where = f"task file {path}"
    for config in walk(load_yaml(path, resolve_func=False)):
        if not isinstance(config, dict):
            continue
        options = config.get("dataset_kwargs")
        is_script = str(config.get("dataset_path") or "").endswith(".py")
        if is_script or (isinstance(options, dict) and options.get("trust_remote_code")):
            raise UserError(
                where,
                f"the data set {config.get('dataset_path')!r}, which needs code of its own",
                "files of data",
                "convert it to JSONL or Parquet and name those in dataset_kwargs",
            )
        if config.get("unsafe_code") and not allow_functions:
            raise UserError(where, "unsafe_code, which runs what the model writes")
        if not allow_functions:
            _check_metrics(config, where)


def _check_metrics(config: dict[Any, Any], where: str) -> None:
    import lm_eval.api.metrics  # noqa: F401  (fills the registry)
    from lm_eval.api.registry import metric_registry

    listed = config.get("metric_list") or []
    for metric in listed if isinstance(listed, list) else [listed]:
        name = metric.get("metric") if isinstance(metric, dict) else metric
        is_known = not isinstance(name, str) or name in metric_registry
        if not is_known or (isinstance(metric, dict) and metric.get("hf_evaluate")):
            raise UserError(
                where,
                f"metric {name!r}, which would be fetched as code from the hub",
                "one of the harness's own",
            )
