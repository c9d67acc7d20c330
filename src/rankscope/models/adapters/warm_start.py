"""Adapters on disk that an arm goes on from (``init_from``), read before anything runs."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rankscope.config.arm import ArmConfig, resolved_alpha
from rankscope.config.study import StudyConfig
from rankscope.errors import IntegrityError, UserError
from rankscope.models.adapters.folder import adapter_sha256, load_adapter, recorded_base
from rankscope.models.adapters.settings import AdapterSettings, method_fields, read_adapter_config
from rankscope.models.lora import Adapter
from rankscope.models.parameters import Architecture, target_shapes

MAX_NAMES = 4
"""Module names shown in a message."""


@dataclass(frozen=True, slots=True)
class WarmStart:
    """An adapter on disk that training goes on from.

    Attributes:
        folder: where it lies.
        sha256: of its configuration and weights.
        base_sha256: of the base it was made for; None where it does not say.
        rank, alpha: as its configuration names them; single modules may have ranks of their own.
        methods: those that train such an adapter, first the one an arm has that names none.
        kind: the settings which say so.
        modules: paths of the layers it changes.
        targets: the shortest names that match these and no others.
    """

    folder: Path
    sha256: str
    base_sha256: str | None
    rank: int
    alpha: float
    methods: tuple[str, ...]
    kind: str
    modules: frozenset[str]
    targets: tuple[str, ...]


def resolve_warm_starts(
    config: StudyConfig, shapes: Architecture
) -> tuple[StudyConfig, Mapping[str, WarmStart]]:
    """The study with method, rank, alpha and targets of every adapter that an arm goes on from.

    Also what was read, by folder as the study names it.

    Raises:
        UserError: there is no such adapter, it does not fit the model ``shapes``, or the arm says
            something else than it.
    """
    starts: dict[str, WarmStart] = {}
    arms = []
    for index, arm in enumerate(config.arms):
        if arm.init_from is not None:
            try:
                if arm.init_from not in starts:
                    starts[arm.init_from] = read_warm_start(Path(arm.init_from), shapes)
                arm = with_start(arm, starts[arm.init_from], shapes)
            except UserError as error:
                raise UserError(f"arms.{index}.init_from: {error}") from error
        arms.append(arm)
    return (config.model_copy(update={"arms": arms}) if starts else config), starts


def read_warm_start(folder: Path, shapes: Architecture) -> WarmStart:
    """Read an adapter folder that PEFT or Rankscope wrote, and hold it against the model.

    Raises:
        UserError: it is missing, damaged or a pickle; no plain LoRA or DoRA adapter; has a module
            that the model lacks or that has another shape there; or a scaling of its own for some
            modules.
    """
    if not folder.is_dir():
        raise UserError(
            f"adapter {folder}: there is no such folder; expected a PEFT adapter folder"
        )
    settings = read_adapter_config(folder)
    try:
        adapter = load_adapter(folder, "start")
    except IntegrityError as error:
        raise UserError(f"adapter {folder}: damaged: {error}") from error
    check_other_shapes(folder, adapter, shapes)
    for name in adapter.a:
        own = settings.scaling_of(name)
        if not math.isclose(own, settings.scaling, rel_tol=1e-9):
            raise UserError(
                f"adapter {folder}: {name!r} has scaling {own:g}, the others {settings.scaling:g} "
                "(rank_pattern, alpha_pattern); expected one scaling, as every trial has"
            )
    methods, kind = methods_of(folder, settings)
    return WarmStart(
        folder=folder,
        sha256=adapter_sha256(folder),
        base_sha256=recorded_base(folder),
        rank=settings.r,
        alpha=settings.lora_alpha,
        methods=methods,
        kind=kind,
        modules=frozenset(adapter.a),
        targets=exact_targets(settings, frozenset(adapter.a), shapes),
    )


def check_other_shapes(folder: Path, adapter: Adapter, shapes: Architecture) -> None:
    """Raise UserError for a module that the model lacks, or that has another shape there."""
    for name in adapter.a:
        found = (len(adapter.b[name]), adapter.a[name].shape[1])
        expected = shapes.linear_shapes.get(name)
        if expected is None:
            leaves = {other.rsplit(".", 1)[-1] for other in shapes.linear_shapes}
            raise UserError(
                f"adapter {folder}: it changes {name!r}, but this model has no such linear layer; "
                f"expected an adapter of this model, on some of: {', '.join(sorted(leaves))}"
            )
        if found != expected:
            raise UserError(
                f"adapter {folder}: {name!r} has (out, in) = {found}, in this model {expected}; "
                "expected an adapter of this model"
            )


def methods_of(folder: Path, settings: AdapterSettings) -> tuple[tuple[str, ...], str]:
    """The methods that continue such an adapter, and the settings that decide them."""
    flags = sorted(name for name in method_fields() if getattr(settings, name, False))
    methods = tuple(method.name for method in settings.methods if method.accepts_warm_start)
    if not methods:
        raise UserError(
            f"adapter {folder}: has {' and '.join(flags)}, and no method trains both together; "
            "expected one of them, or neither"
        )
    return methods, f"{flags[0]}: true" if flags else "neither use_dora nor use_rslora"


def exact_targets(
    settings: AdapterSettings, modules: frozenset[str], shapes: Architecture
) -> tuple[str, ...]:
    """Names that match the adapter's modules alone: last parts of paths, PEFT's own, or paths."""
    leaves = {name.rsplit(".", 1)[-1] for name in modules}
    asked = settings.target_modules if isinstance(settings.target_modules, list) else []
    for names in (tuple(sorted(leaves)), tuple(sorted(set(asked)))):
        every = {other for name in names for other in matched(name, shapes)}
        if names and all(matched(name, shapes) for name in names) and every == modules:
            return names
    return tuple(sorted(modules))


def matched(target: str, shapes: Architecture) -> set[str]:
    """Layers that a target names, none where it names none."""
    try:
        return set(target_shapes(shapes, [target]))
    except UserError:
        return set()


def with_start(arm: ArmConfig, start: WarmStart, shapes: Architecture) -> ArmConfig:
    """The arm with what it leaves out taken from the adapter.

    Raises:
        UserError: the arm says something else than the adapter.
    """
    for method in arm.method:
        if method not in start.methods:
            raise UserError(
                f"method {method!r} does not fit the adapter {start.folder}, which has "
                f"{start.kind}; expected {' or '.join(map(repr, start.methods))}"
            )
    for rank in arm.rank:
        if rank != start.rank:
            raise UserError(differs("rank", rank, start.rank, start))
    if "alpha" in arm.model_fields_set:
        for alpha in arm.alpha:
            number = resolved_alpha(alpha, start.rank)
            if number != start.alpha:
                raise UserError(differs("alpha", f"{number:g}", f"{start.alpha:g}", start))
    if "targets" in arm.model_fields_set:
        for targets in arm.target_sets():
            if set(target_shapes(shapes, targets)) != start.modules:
                raise UserError(differs("targets", few(targets), few(start.targets), start))
    taken = {
        "method": [start.methods[0]],
        "rank": [start.rank],
        "alpha": [start.alpha],
        "targets": [list(start.targets)],
    }
    given = {name for name in taken if name in arm.model_fields_set and getattr(arm, name)}
    return arm.model_copy(update={k: value for k, value in taken.items() if k not in given})


def differs(name: str, found: object, expected: object, start: WarmStart) -> str:
    """A message that an arm and its adapter disagree."""
    return (
        f"the arm has {name} {found}, the adapter {start.folder} has {expected}; "
        f"remove {name!r} from the arm, or write what the adapter has"
    )


def few(names: tuple[str, ...]) -> str:
    """Names for a message, the first of many."""
    more = len(names) - MAX_NAMES
    shown = ", ".join(names[:MAX_NAMES])
    return f"[{shown}, ... and {more} more]" if more > 0 else f"[{shown}]"


def warm_start_notes(starts: Iterable[WarmStart]) -> list[str]:
    """One sentence per adapter that does not say which base it was made for."""
    return [
        f"adapter {start.folder}: it does not say which weights it was made for; its modules fit "
        "this model, and it is taken to be made for it"
        for start in starts
        if start.base_sha256 is None
    ]
