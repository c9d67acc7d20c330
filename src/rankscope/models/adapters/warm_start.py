"""Adapters on disk that an arm continues (``init_from``), read before anything runs."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rankscope.config.arm import ArmConfig, resolved_alpha
from rankscope.config.study import StudyConfig
from rankscope.errors import UserError
from rankscope.models.adapters.folder import (
    adapter_sha256,
    check_complete,
    load_adapter,
    recorded_base,
)
from rankscope.models.adapters.settings import PLAIN_INITS, AdapterSettings, read_adapter_config
from rankscope.models.lora import Adapter
from rankscope.models.parameters import Architecture, target_shapes

MAX_SHOWN_TARGETS = 4  # Module names shown in a message


@dataclass(frozen=True, slots=True)
class WarmStart:
    folder: Path
    sha256: str  # Of its configuration and weights
    base_sha256: str | None  # Recorded hash of its base
    rank: int  # Rank and alpha as in its configuration; single modules may have others
    alpha: float
    methods: tuple[str, ...]  # That train such an adapter; the first is an arm's default
    flags: str  # Its settings that decide the methods
    modules: frozenset[str]  # Paths of the layers it changes
    targets: tuple[str, ...]  # The shortest names that match these layers and no others


def resolve_warm_starts(
    config: StudyConfig, shapes: Architecture
) -> tuple[StudyConfig, Mapping[str, WarmStart]]:
    """Fill method, rank, alpha and targets of arms with ``init_from`` from their adapters. Returns
    the filled configuration, and the adapters by folder as the study names it."""
    warm_starts: dict[str, WarmStart] = {}
    arms = []
    for index, arm in enumerate(config.arms):
        if arm.init_from is not None:
            try:
                if arm.init_from not in warm_starts:
                    warm_starts[arm.init_from] = read_warm_start(Path(arm.init_from), shapes)
                arm = _filled_arm(arm, warm_starts[arm.init_from], shapes)
            except UserError as error:
                raise UserError(
                    f"arms.{index}.init_from: {error.where}", error.found, error.expected, error.do
                ) from error
        arms.append(arm)
    return (config.model_copy(update={"arms": arms}) if warm_starts else config), warm_starts


def read_warm_start(folder: Path, shapes: Architecture) -> WarmStart:
    if not folder.is_dir():
        raise UserError(f"adapter {folder}", "no such folder", "a PEFT adapter folder")
    settings = read_adapter_config(folder)
    adapter = load_adapter_for(shapes, folder)
    for name in adapter.a:
        scaling = settings.scaling_of(name)
        if not math.isclose(scaling, settings.scaling, rel_tol=1e-9):
            raise UserError(
                f"adapter {folder}",
                f"{name!r} with scaling {scaling:g} (alpha_pattern, rank_pattern)",
                f"{settings.scaling:g} as the others have",
            )
    methods = tuple(method.name for method in settings.methods if method.accepts_warm_start)
    if not methods:
        found = f"{' and '.join(settings.flags)}, which no method trains together"
        raise UserError(f"adapter {folder}", found, "one of them, or neither")
    return WarmStart(
        folder=folder,
        sha256=adapter_sha256(folder),
        base_sha256=recorded_base(folder),
        rank=settings.r,
        alpha=settings.lora_alpha,
        methods=methods,
        flags=settings.flags_text,
        modules=frozenset(adapter.a),
        targets=shortest_targets(settings, frozenset(adapter.a), shapes),
    )


def load_adapter_for(
    shapes: Architecture,
    folder: Path,
    inits: Collection[object] = PLAIN_INITS,
    *,
    has_copies: bool = False,
) -> Adapter:
    """A user's adapter, checked to change modules of the model, in the same shapes, and all that
    its configuration names; ``inits`` and ``has_copies`` as of ``load_adapter``."""
    adapter = load_adapter(folder, "start", inits=inits, has_copies=has_copies)
    for name in adapter.a:
        shape = (len(adapter.b[name]), adapter.a[name].shape[1])
        expected = shapes.linear_shapes.get(name)
        if expected is None:
            leaves = {other.rsplit(".", 1)[-1] for other in shapes.linear_shapes}
            raise UserError(
                f"adapter {folder}",
                f"factors for {name!r}, which this model does not have",
                f"some of: {', '.join(sorted(leaves))}",
                "give an adapter of this model",
            )
        if shape != expected:
            raise UserError(
                f"adapter {folder}",
                f"{name!r} with (out, in) = {shape}",
                f"{expected} as in this model",
                "give an adapter of this model",
            )
    check_complete(folder, adapter.a, shapes.linear_shapes, inits)
    return adapter


def shortest_targets(
    settings: AdapterSettings, modules: frozenset[str], shapes: Architecture
) -> tuple[str, ...]:
    """Names that match exactly the adapter's modules: last parts of paths, PEFT's own, or paths."""
    leaves = {name.rsplit(".", 1)[-1] for name in modules}
    listed = settings.target_modules if isinstance(settings.target_modules, list) else []
    for names in (tuple(sorted(leaves)), tuple(sorted(set(listed)))):
        try:
            if names and set(target_shapes(shapes, names)) == modules:
                return names
        except UserError:  # a name that matches nothing
            continue
    return tuple(sorted(modules))


def _filled_arm(arm: ArmConfig, warm_start: WarmStart, shapes: Architecture) -> ArmConfig:
    for method in arm.method:
        if method not in warm_start.methods:
            raise UserError(
                f"adapter {warm_start.folder}",
                f"method {method!r} in the arm, and {warm_start.flags} in the adapter",
                " or ".join(map(repr, warm_start.methods)),
            )
    for rank in arm.rank:
        if rank != warm_start.rank:
            raise _contradiction("rank", rank, warm_start.rank, warm_start)
    if "alpha" in arm.model_fields_set:
        for alpha in arm.alpha:
            number = resolved_alpha(alpha, warm_start.rank)
            if number != warm_start.alpha:
                raise _contradiction("alpha", f"{number:g}", f"{warm_start.alpha:g}", warm_start)
    if "targets" in arm.model_fields_set:
        for targets in arm.target_sets():
            if set(target_shapes(shapes, targets)) != warm_start.modules:
                expected = _short_list(warm_start.targets)
                raise _contradiction("targets", _short_list(targets), expected, warm_start)
    adapter_settings = {
        "method": [warm_start.methods[0]],
        "rank": [warm_start.rank],
        "alpha": [warm_start.alpha],
        "targets": [list(warm_start.targets)],
    }
    update = {
        name: value
        for name, value in adapter_settings.items()
        if name not in arm.model_fields_set or not getattr(arm, name)
    }
    return arm.model_copy(update=update)


def _contradiction(name: str, given: object, expected: object, warm_start: WarmStart) -> UserError:
    return UserError(
        f"adapter {warm_start.folder}",
        f"{name} {given} in the arm",
        f"the adapter's {expected}",
        f"remove {name!r} from the arm, or write the adapter's value",
    )


def _short_list(names: tuple[str, ...]) -> str:
    more = len(names) - MAX_SHOWN_TARGETS
    shown = ", ".join(names[:MAX_SHOWN_TARGETS])
    return f"[{shown}, ... and {more} more]" if more > 0 else f"[{shown}]"


def warm_start_notes(warm_starts: Iterable[WarmStart]) -> list[str]:
    return [
        f"adapter {start.folder}: it does not record the weights it was made for; its modules fit "
        "this model, so this model is taken to be its base"
        for start in warm_starts
        if start.base_sha256 is None
    ]
