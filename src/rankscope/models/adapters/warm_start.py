"""Settings that an arm takes from adapters on disk, read before anything runs.

An arm continues an adapter (``init_from``), or takes its ranks by module (``rank_pattern``).
"""

import math
from collections.abc import Sequence
from pathlib import Path

from rankscope.config.arm import ArmConfig, resolved_alpha
from rankscope.errors import UserError
from rankscope.formatting import join_names
from rankscope.models.adapters.folder import adapter_sha256, load_adapter
from rankscope.models.adapters.settings import read_settings
from rankscope.models.lora import Adapter
from rankscope.models.parameters import Architecture, target_shapes

MAX_SHOWN_TARGETS = 4  # Module names shown in a message


def resolve_adapters(
    arms: Sequence[ArmConfig], shapes: Architecture
) -> tuple[list[ArmConfig], dict[str, tuple[str, str | None]]]:
    """Fill in the settings that arms take from files of adapters.

    ``rank_pattern`` gives every target's rank by module path, and ``rank`` becomes the one rank
    with as many parameters. ``init_from`` gives method, rank, alpha and targets.

    Returns:
        The filled arms; and two hashes by folder to continue from, as the study names it: of the
        adapter's files, and of its base or None.
    """
    hashes: dict[str, tuple[str, str | None]] = {}
    filled = []
    for index, arm in enumerate(arms):
        key = "rank_pattern"
        try:
            if arm.rank_pattern is not None:
                arm = _with_ranks_by_module(arm, shapes)
            if arm.init_from is not None:
                key, folder = "init_from", Path(arm.init_from)
                adapter = load_adapter(folder, "start", shapes=shapes.linear_shapes)
                arm = _filled_arm(arm, folder, adapter, shapes)
                hashes[str(arm.init_from)] = adapter_sha256(folder), adapter.base_sha256
        except UserError as error:
            place = f"arms.{index}.{key}: {error.where}"
            raise UserError(place, error.found, error.expected, error.do) from error
        filled.append(arm)
    return filled, hashes


def _with_ranks_by_module(arm: ArmConfig, shapes: Architecture) -> ArmConfig:
    source, own = arm.rank_pattern, "targets" in arm.model_fields_set
    if len(arm.targets) > 1:
        raise UserError(
            "targets", f"{len(arm.targets)} sets of modules", "one", "remove the others"
        )
    if isinstance(source, str):
        settings = read_settings(Path(source))
        listed = settings.target_modules
        if not own and not isinstance(listed, list):
            raise UserError(source, f"target_modules {listed!r}", "a list", "add 'targets'")
        targets = arm.target_sets()[0] if own else tuple(sorted(listed or ()))
        names = target_shapes(shapes, targets)
        odd = [key for key in settings.rank_pattern
               if not any(settings.match(rf"(.*\.)?({key})", name) for name in names)]  # fmt: skip
        if odd:
            found = f"a rank for {odd[0]!r}, which is none of the {len(names)} targets"
            raise UserError(source, found, "ranks of modules of this model", "give its own file")
        ranks = {name: settings.rank_of(name) for name in names}
    else:
        ranks, targets = dict(source or {}), arm.target_sets()[0]
        names = target_shapes(shapes, targets)
        if odd := sorted(ranks.keys() ^ names.keys()):
            found = f"{odd[0]!r} in only one of them and the targets"
            raise UserError("modules", found, "a rank for every target")
    for name, rank in ranks.items():
        if rank > min(names[name]):
            expected = f"at most {min(names[name])}, its smaller dimension"
            raise UserError(name, f"rank {rank}", expected, "choose a smaller rank")
    costs = {name: sum(shape) for name, shape in names.items()}
    mean = sum(ranks[name] * cost for name, cost in costs.items()) / sum(costs.values())
    update = {"rank": [max(1, round(mean))], "rank_pattern": ranks, "targets": [list(targets)]}
    if arm.rank not in ([], update["rank"]):  # a resolved study has the one of as many parameters
        raise UserError("rank", f"{arm.rank} beside the ranks by module", "one of them")
    return arm.model_copy(update=update)


def _filled_arm(arm: ArmConfig, folder: Path, adapter: Adapter, shapes: Architecture) -> ArmConfig:
    """Fill in an arm's missing settings from the adapter that it continues.

    Raises UserError: the adapter does not fit the model, or a setting contradicts it.
    """
    settings = adapter.settings
    assert settings is not None
    for name in adapter.a:
        scaling = settings.scaling_of(name)
        if not math.isclose(scaling, settings.scaling, rel_tol=1e-9):
            found = f"{name!r} with scaling {scaling:g} (alpha_pattern, rank_pattern)"
            expected = f"{settings.scaling:g} as the others have"
            raise UserError(f"adapter {folder}", found, expected)
    methods = [method.name for method in settings.methods if method.accepts_warm_start]
    if not methods:
        found = f"{' and '.join(settings.flags)}, which no method trains together"
        raise UserError(f"adapter {folder}", found, "one of them, or neither")
    targets = shortest_targets(adapter, shapes)
    for method in arm.method:
        if method not in methods:
            marks = ", ".join(f"{flag}: true" for flag in settings.flags) or "no flag of a method"
            found = f"method {method!r} in the arm, and {marks} in the adapter"
            raise UserError(f"adapter {folder}", found, " or ".join(map(repr, methods)))
    given: list[tuple[str, object, object, bool]] = [
        ("rank", rank, settings.r, rank == settings.r) for rank in arm.rank
    ]
    for alpha in arm.alpha if "alpha" in arm.model_fields_set else ():
        number, own = resolved_alpha(alpha, settings.r), settings.lora_alpha
        given.append(("alpha", f"{number:g}", f"{own:g}", number == own))
    for names in arm.target_sets() if "targets" in arm.model_fields_set else ():
        is_own = target_shapes(shapes, names).keys() == adapter.a.keys()
        wished, known = (join_names(shown, MAX_SHOWN_TARGETS) for shown in (names, targets))
        given.append(("targets", wished, known, is_own))
    for name, text, value, is_equal in given:
        if not is_equal:
            place = f"adapter {folder}"
            do = f"remove {name!r} from the arm, or write the adapter's value"
            raise UserError(place, f"{name} {text} in the arm", f"the adapter's {value}", do)
    values = {"method": [methods[0]], "rank": [settings.r], "alpha": [settings.lora_alpha]}
    update = {
        name: value
        for name, value in {**values, "targets": [list(targets)]}.items()
        if name not in arm.model_fields_set or not getattr(arm, name)
    }
    return arm.model_copy(update=update)


def shortest_targets(adapter: Adapter, shapes: Architecture) -> tuple[str, ...]:
    """Find names that match exactly the adapter's modules.

    They are last parts of paths, PEFT's own names, or whole paths, in this order of preference.
    """
    modules, settings = set(adapter.a), adapter.settings
    leaves = {name.rsplit(".", 1)[-1] for name in modules}
    listed = settings.target_modules if settings else None
    listed = listed if isinstance(listed, list) else []
    for names in (tuple(sorted(leaves)), tuple(sorted(set(listed)))):
        try:
            if names and set(target_shapes(shapes, names)) == modules:
                return names
        except UserError:  # a name that matches nothing
            continue
    return tuple(sorted(modules))
