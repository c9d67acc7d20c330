"""Task files of lm-evaluation-harness, checked before anything in them can run.

A YAML file is read as data. Functions that it names, metrics fetched from elsewhere, data sets that
need code of their own and tasks that run what a model writes are refused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rankscope.config.task import LM_EVAL_PREFIX
from rankscope.errors import UserError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

PREFIX = LM_EVAL_PREFIX
"""Before a harness task's name."""
FUNCTION = "!function"
PLAIN_TAG = "tag:yaml.org,2002:"
PLAIN_TYPES = frozenset(
    {"map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "binary", "set"}
)


def is_file(name: str) -> bool:
    """A task's name that is the path of a YAML file."""
    return name.endswith((".yaml", ".yml"))


@dataclass(frozen=True, slots=True)
class CheckedTask:
    """What to load, and every file that says what it is, included ones too."""

    names: list[str]
    files: tuple[Path, ...]


def check_task(manager: "TaskManager", name: str, allow_functions: bool) -> CheckedTask:
    """What to load for a name, once every file behind it is known to be harmless.

    Raises:
        UserError: no such task, or one that is refused.
    """
    if is_file(name):
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise UserError(f"task {PREFIX}{name}: no such file; expected a harness task's YAML")
        files = [path]
    else:
        files = files_of(manager, name)
    read: dict[Path, None] = {}
    for file in files:
        read |= dict.fromkeys(check_code(file, allow_functions))
        check_remote(file, allow_functions)
    return CheckedTask([str(files[0]) if is_file(name) else name], tuple(read))


def files_of(manager: "TaskManager", name: str) -> list[Path]:
    """YAML files of a registered task, or of all members of a group or tag."""
    found: list[Path] = []
    waiting, seen = [name], set()
    while waiting:
        current = waiting.pop()
        entry = manager.task_index.get(current)
        if entry is None and current == name:
            raise UserError(
                f"task {PREFIX}{name}: lm-evaluation-harness has no task, group or tag of this "
                "name; 'lm-eval ls tasks' lists them, and a path that ends in .yaml names a file"
            )
        if entry is None or current in seen:
            continue
        seen.add(current)
        if entry.yaml_path is not None:
            found.append(Path(entry.yaml_path))
        waiting += sorted(entry.tags) if entry.kind.name == "TAG" else []
        members = (entry.cfg or {}).get("task")
        waiting += names_in(members) if isinstance(members, list) else []
    return found


def names_in(members: Sequence[Any]) -> list[str]:
    """Names of a group's members, inner groups' too."""
    names: list[str] = []
    for member in members:
        if isinstance(member, dict):
            inner = member.get("task")
            names += names_in(inner) if isinstance(inner, list) else [str(inner)]
            names += [str(member["group"])] if "group" in member else []
        else:
            names.append(str(member))
    return names


def check_code(
    path: Path, allow_functions: bool, seen: frozenset[Path] = frozenset()
) -> list[Path]:
    """Read a YAML file and what it includes as a tree of tagged nodes; nothing is constructed.

    Returns:
        The files read, this one first.

    Raises:
        UserError: it names a function without leave to, or an object of Python's in any case.
    """
    if path in seen:
        return []
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"task file {path}: cannot be read: {error}") from error
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"task file {path}: expected a mapping with 'task', 'dataset_path', ...")
    for node in nodes_of(root):
        where = f"task file {path}, line {node.start_mark.line + 1}"
        if node.tag == FUNCTION:
            if not allow_functions:
                raise UserError(
                    f"{where}: {FUNCTION} {node.value} would run Python from beside this file. "
                    "Read that code first; then allow it with --trust-task-code"
                )
        elif node.tag.removeprefix(PLAIN_TAG) not in PLAIN_TYPES:
            raise UserError(f"{where}: tag {node.tag!r}; expected plain YAML")
    read = [path]
    for key, value in root.value:
        if key.value == "include":
            names = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for name in names:
                place = (path.parent / name.value).resolve()
                read += check_code(place, allow_functions, seen | {path})
    return read


def nodes_of(root: yaml.Node) -> Iterator[yaml.Node]:
    """Every node of a tree, each once: an alias may lead back to where it stands."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def check_remote(path: Path, allow_functions: bool) -> None:
    """Refuse what would fetch code from elsewhere, or run what a model writes.

    A group's members may be written out inside it, so every mapping of the file is checked.

    Raises:
        UserError: such a data set, metric or task.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    where = f"task file {path}"
    for config in mappings_of(load_yaml(path, resolve_func=False)):
        check_data_code(config, where)
        if config.get("unsafe_code") and not allow_functions:
            raise UserError(f"{where}: it runs what the model writes (unsafe_code); refused")
        if not allow_functions:
            check_fetched_metrics(config, where)


def mappings_of(root: Any) -> Iterator[dict[Any, Any]]:
    """Every mapping in what a YAML file holds, each once."""
    waiting, seen = [root], set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, dict):
            yield part
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def check_data_code(config: dict[Any, Any], where: str) -> None:
    """Raises UserError where a task's data set is a script, or asks to run one."""
    options = config.get("dataset_kwargs")
    script = str(config.get("dataset_path") or "").endswith(".py")
    if script or (isinstance(options, dict) and options.get("trust_remote_code")):
        raise UserError(
            f"{where}: its data set {config.get('dataset_path')!r} needs code of its own; expected "
            "files of data: convert it to JSONL or Parquet and name those in dataset_kwargs"
        )


def check_fetched_metrics(config: dict[Any, Any], where: str) -> None:
    """Raises UserError where a task names a metric that is not the harness's own."""
    import lm_eval.api.metrics  # noqa: F401  (fills the registry)
    from lm_eval.api.registry import metric_registry

    listed = config.get("metric_list") or []
    for metric in listed if isinstance(listed, list) else [listed]:
        name = metric.get("metric") if isinstance(metric, dict) else metric
        is_known = not isinstance(name, str) or name in metric_registry
        if not is_known or (isinstance(metric, dict) and metric.get("hf_evaluate")):
            raise UserError(
                f"{where}: metric {name!r} would be fetched as code from the hub; expected one of "
                "the harness's own"
            )
