"""What ``inspect`` and ``shrink`` print."""

from collections.abc import Sequence
from statistics import fmean as mean

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rankscope.cli.render.tables import listing, notes_lines
from rankscope.formatting import byte_size, terminal_text
from rankscope.records import AdapterChange, HeadsRecord, Inspection, TunedModel
from rankscope.tools.inspect_heads import most_moved_heads


def inspection_screen(found: Inspection) -> RenderableType:
    """What ``inspect`` prints: one row per tuned model, then one per module type."""
    parts: list[RenderableType] = [inspected_models(found)]
    for model in found.tuned:
        parts.append(inspected_modules(model))
        if model.heads is not None:
            parts.append(inspected_heads(model.name, model.heads))
            if model.heads.ablations:
                parts.append(inspected_ablations(model.name, model.heads))
    return Group(*parts, *notes_lines(inspected_notes(found)))


def inspected_notes(found: Inspection) -> list[str]:
    """What the tables do not say: what stands out and what it means, growth with rank, uncertain
    vectors, what is kept on disk."""
    notes = [stands_out(model) for model in found.tuned if model.spectra.matrices]
    notes.append(
        "subspace: how much of the leading singular vectors' span was kept, 1 is all, chance what "
        "unrelated ones give; intruders: of each matrix's leading vectors those unlike any one of "
        "the base's, energy their share. Larger updates and intruders may go with forgetting, but "
        "only scores show it: rankscope eval on a task that was not trained"
    )
    if (growth := found.growth) is not None:
        notes.append(
            f"|dW| = {growth.start:.3g} + {growth.slope:.3g} ln r over ranks "
            f"{', '.join(map(str, growth.ranks))}: residual {growth.rms:.2g} (root mean square); "
            f"r^{growth.power:.2g} leaves {growth.power_rms:.2g}"
        )
    for model in found.tuned:
        uncertain = sum(m.ill_conditioned for m in model.spectra.matrices)
        total = sum(m.top_k for m in model.spectra.matrices)
        if uncertain:
            notes.append(
                f"{terminal_text(model.name)}: {uncertain} of {total} vectors compared are in clusters "
                "of close singular values, where single vectors mean little"
            )
    if found.cache_bytes:
        notes.append(f"decompositions of base weights on disk: {byte_size(found.cache_bytes)}")
    return notes


def stands_out(model: TunedModel) -> str:
    """Where the update is largest, and how many of the leading vectors are new."""
    spectra = model.spectra
    largest = max(spectra.matrices, key=lambda m: m.relative)
    examined = sum(len(m.largest_cosines) for m in spectra.matrices)
    return (
        f"{terminal_text(model.name)}: |dW| is {100 * mean(m.relative for m in spectra.matrices):.2g} "
        f"of |W0| on average, most in {terminal_text(largest.name)} ({100 * largest.relative:.2g} %); "
        f"{spectra.intruders:,} of {examined:,} leading vectors are intruders"
    )


def inspected_models(found: Inspection) -> Table:
    """Each tuned model in one row."""
    numbers = ("rank", "matrices", "|dW|", "/|W0|", "eff. rank", "intruders")
    table = listing(
        f"tuned models of {found.base}", ("model", "kind", *numbers), frozenset(numbers)
    )
    for model in found.tuned:
        matrices = model.spectra.matrices
        table.add_row(
            terminal_text(model.name),
            model.kind,
            str(model.rank or "-"),
            str(len(matrices)),
            f"{model.spectra.frobenius:.3g}",
            f"{mean(m.relative for m in matrices):.3g}",
            f"{mean(m.effective_rank for m in matrices):.3g}",
            str(model.spectra.intruders),
        )
    return table


def inspected_modules(model: TunedModel) -> Table:
    """One tuned model by type of module: means over its layers."""
    numbers = ("/|W0|", "eff. rank", "stable rank", "subspace", "chance", "intruders", "energy")
    table = listing(f"{model.name}, means over layers", ("module", *numbers), frozenset(numbers))
    for module in dict.fromkeys(m.module for m in model.spectra.matrices):
        own = [m for m in model.spectra.matrices if m.module == module]
        table.add_row(
            terminal_text(module),
            f"{mean(m.relative for m in own):.3g}",
            f"{mean(m.effective_rank for m in own):.3g}",
            f"{mean(m.stable_rank for m in own):.3g}",
            f"{mean(mean(m.similarity_subspace) for m in own):.4f}",
            f"{mean(mean(m.chance_subspace) for m in own):.3f}",
            str(sum(m.intruders for m in own)),
            f"{mean(m.intruder_energy for m in own):.3f}",
        )
    return table


def inspected_heads(name: str, heads: HeadsRecord) -> Table:
    """The heads whose q_proj or o_proj slices moved most, as layer.head; importance and entropy
    before tuning and after."""
    numbers: tuple[str, ...] = (
        "head",
        "|dW_h|/|W0_h|",
        "importance",
        "after",
        "entropy",
        "after ",
    )
    numbers += ("skill", "lost") if heads.roles else ()
    title = f"{name}, heads that moved most (layer.head); {heads.items} items of {heads.task}"
    title += f", {heads.dtype}" if heads.dtype else ""
    table = listing(title, numbers, frozenset(numbers))
    roles = {(role.layer, role.head): role for role in heads.roles}
    for layer, head, moved in most_moved_heads(heads):
        base, tuned = heads.base[layer], heads.tuned[layer]
        values: list[float | None] = [base.importance[head], tuned.importance[head]]
        values += [base.entropy[head], tuned.entropy[head]]
        if (role := roles.get((layer, head))) is not None:
            values += [role.skill, role.lost]
        cells = ["-" if value is None else f"{value:.3f}" for value in values]
        table.add_row(f"{layer}.{head}", f"{moved:.3g}", *cells)
    return table


def inspected_ablations(name: str, heads: HeadsRecord) -> Table:
    """By task: scores, and the head and the layer of heads whose removal costs most."""
    numbers = ("items", "before", "after", "head", "nats", "layer", "nats ")
    title = f"{name}, heads removed: scores; costliest head and layer after tuning, right answer"
    table = listing(title, ("task", "score", *numbers), frozenset(numbers))
    for found in heads.ablations:
        costs = [
            (-change, f"{layer}.{head}")
            for layer, changes in enumerate(found.tuned_gold_change)
            for head, change in enumerate(changes)
        ]
        most, head = max(costs)
        whole = [(-c, str(layer)) for layer, c in enumerate(found.tuned_layer_gold_change)]
        most_of_all, layer = max(whole) if whole else (None, "-")
        table.add_row(
            terminal_text(found.task),
            found.metric,
            str(found.items),
            f"{found.base_score:.3f}",
            f"{found.tuned_score:.3f}",
            head,
            f"{most:.3f}",
            layer,
            "-" if most_of_all is None else f"{most_of_all:.3f}",
        )
    return table


def change_screen(changes: Sequence[AdapterChange]) -> RenderableType:
    """What ``shrink`` prints: per adapter written, each matrix and the whole."""
    parts = [part for change in changes for part in changed_matrices(change)]
    last = changes[-1].matrices
    grown = sum(1 for m in last if m.intruders and m.frobenius_after > m.frobenius_before)
    notes = [
        f"{grown} of {len(last)} matrices are further from the base than before, their controls as "
        "well: intruders are of the whole weight, and the base's share of them is scaled too"
    ]
    return Group(*parts, *notes_lines(notes if grown else []))


def changed_matrices(change: AdapterChange) -> tuple[RenderableType, ...]:
    """One adapter's matrices, its total and where it is."""
    numbers = ("rank", "now", "|dW|", "now ", "|dW-dW'|/|dW|", "intruders")
    table = listing(change.action, ("matrix", *numbers), frozenset(numbers))
    for m in change.matrices:
        share = m.error / m.frobenius_before if m.frobenius_before else 0.0
        found = "-" if m.intruders is None else str(m.intruders)
        norms = (f"{m.frobenius_before:.3g}", f"{m.frobenius_after:.3g}", f"{share:.2g}")
        table.add_row(terminal_text(m.name), str(m.rank_before), str(m.rank_after), *norms, found)
    share = change.error / change.frobenius if change.frobenius else 0.0
    total = f"in all |dW-dW'|/|dW| = {share:.3g}; written to {terminal_text(change.out)}\n"
    return table, Text(total)
