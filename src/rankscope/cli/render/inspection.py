"""What ``inspect`` and ``shrink`` print."""

from collections.abc import Iterable, Iterator, Sequence
from math import hypot
from statistics import fmean as mean

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rankscope.analyses.heads.record import HeadsRecord
from rankscope.analyses.inspection import Inspection, TunedModel
from rankscope.cli.render.table import terminal_table
from rankscope.cli.terminal import note_lines
from rankscope.formatting import byte_size, number, terminal_text
from rankscope.models.scaling import layer_index
from rankscope.records import AdapterChange, MatrixChange
from rankscope.report.columns import Column
from rankscope.tools.inspect_heads import most_moved_heads

_RELATIVE = "/|W0|"


def inspection_tables(inspection: Inspection) -> RenderableType:
    """A row per tuned model; then each model by module and, if measured, by attention head."""
    parts: list[RenderableType] = [_models(inspection)]
    for model in inspection.tuned:
        parts.append(_modules(model))
        if model.heads is not None:
            parts.append(_heads(model.name, model.heads))
            if model.heads.ablations:
                parts.append(_ablations(model.name, model.heads))
    return Group(*parts, *note_lines(list(_notes(inspection))))


def _notes(inspection: Inspection) -> Iterator[str]:
    """What stands out, how to read the tables, growth with rank, uncertain vectors, disk."""
    for model in inspection.tuned:
        if model.other_base_forced:
            yield f"{model.name}: records another base; compared with this one because of --force"
    yield from (_largest_update(model) for model in inspection.tuned if model.spectra.matrices)
    yield (
        "subspace: share of the span of the leading singular vectors that was kept (1 is all, "
        "chance is what unrelated vectors give); intruders: leading vectors unlike any of the "
        "base's, energy is their share. Larger updates and intruders may come with forgetting; "
        "to know, score a task that was not trained: rankscope eval"
    )
    if (growth := inspection.growth) is not None:
        yield (
            f"|dW| = {growth.start:.3g} + {growth.slope:.3g} ln r over ranks "
            f"{', '.join(map(str, growth.ranks))}: residual {growth.rms:.2g} (root mean square); "
            f"r^{growth.power:.2g} leaves {growth.power_rms:.2g}"
        )
    for model in inspection.tuned:
        uncertain = sum(m.ill_conditioned for m in model.spectra.matrices)
        total = sum(m.top_k for m in model.spectra.matrices)
        if uncertain:
            yield (
                f"{model.name}: {uncertain} of {total} vectors compared are in clusters of close "
                "singular values, in which single vectors mean little"
            )
    if inspection.cache_bytes:
        yield f"decompositions of base weights on disk: {byte_size(inspection.cache_bytes)}"


def _largest_update(model: TunedModel) -> str:
    spectra = model.spectra
    largest = max(spectra.matrices, key=lambda m: m.relative)
    examined = sum(len(m.largest_cosines) for m in spectra.matrices)
    return (
        f"{model.name}: |dW| is {100 * mean(m.relative for m in spectra.matrices):.2g} % of |W0| "
        f"on average, most in {largest.name} ({100 * largest.relative:.2g} %); "
        f"{spectra.intruders:,} of {examined:,} leading vectors are intruders"
    )


def _models(inspection: Inspection) -> Table:
    rows = [
        {
            "model": model.name,
            "kind": model.kind,
            "rank": model.rank,
            "matrices": len(model.spectra.matrices),
            "|dW|": model.spectra.frobenius,
            _RELATIVE: mean(m.relative for m in model.spectra.matrices),
            "eff. rank": mean(m.effective_rank for m in model.spectra.matrices),
            "intruders": model.spectra.intruders,
        }
        for model in inspection.tuned
    ]
    return terminal_table(rows, f"tuned models of {inspection.base}")


def _modules(model: TunedModel) -> Table:
    rows = []
    for module in dict.fromkeys(m.module for m in model.spectra.matrices):
        matrices = [m for m in model.spectra.matrices if m.module == module]
        rows.append(
            {
                "module": module,
                _RELATIVE: mean(m.relative for m in matrices),
                "eff. rank": mean(m.effective_rank for m in matrices),
                "stable rank": mean(m.stable_rank for m in matrices),
                "subspace": mean(mean(m.similarity_subspace) for m in matrices),
                "chance": mean(mean(m.chance_subspace) for m in matrices),
                "intruders": sum(m.intruders for m in matrices),
                "energy": mean(m.intruder_energy for m in matrices),
            }
        )
    columns = {"subspace": Column(digits=4), "chance": Column(digits=3), "energy": Column(digits=3)}
    return terminal_table(rows, f"{model.name}, means over layers", columns)


def _heads(name: str, heads: HeadsRecord) -> Table:
    """The heads whose q_proj or o_proj slices moved most, as layer.head."""
    roles = {(role.layer, role.head): role for role in heads.roles}
    rows = []
    for layer, head, moved in most_moved_heads(heads):
        base, tuned, role = heads.base[layer], heads.tuned[layer], roles.get((layer, head))
        row: dict[str, object] = {
            "head": f"{layer}.{head}",
            "|dW_h|/|W0_h|": moved,
            "importance": base.importance[head],
            "importance after": tuned.importance[head],
            "entropy": base.entropy[head],
            "entropy after": tuned.entropy[head],
        }
        rows.append(row | ({"skill": role.skill, "lost": role.lost} if role else {}))
    columns = dict.fromkeys(
        ("importance", "importance after", "entropy", "entropy after", "skill", "lost"),
        Column(digits=3),
    )
    title = f"{name}, heads that moved most (layer.head); {heads.items} items of {heads.task}"
    title += f", {heads.dtype}"
    return terminal_table(rows, title, columns, right=("head",))


def _ablations(name: str, heads: HeadsRecord) -> Table:
    """Scores by task, and the head and the layer of heads whose removal costs most."""
    rows = []
    for ablation in heads.ablations:
        head_costs = [
            (-change, f"{layer}.{head}")
            for layer, changes in enumerate(ablation.tuned_gold_change)
            for head, change in enumerate(changes)
        ]
        layer_costs = [(-c, layer) for layer, c in enumerate(ablation.tuned_layer_gold_change)]
        (head_cost, head), (layer_cost, layer) = max(head_costs), max(layer_costs)
        rows.append(
            {
                "task": ablation.task,
                "score": ablation.metric,
                "items": ablation.items,
                "before": ablation.base_score,
                "after": ablation.tuned_score,
                "head, nats": f"{head}: {number(head_cost, 3)}",
                "layer, nats": f"{layer}: {number(layer_cost, 3)}",
            }
        )
    title = f"{name}, heads removed: scores; costliest head and layer after tuning, right answer"
    columns = dict.fromkeys(("before", "after"), Column(digits=3))
    return terminal_table(rows, title, columns, right=("head, nats", "layer, nats"))


def changes_tables(changes: Sequence[AdapterChange]) -> RenderableType:
    """What ``shrink`` changed: per adapter written, a row per kind of matrix and the whole."""
    last = changes[-1].matrices
    grown = sum(1 for m in last if m.intruders and m.frobenius_after > m.frobenius_before)
    notes = [
        f"{grown} of {len(last)} matrices are further from the base than before, and so are their "
        "controls: intruders belong to the whole weight, so the base's share is scaled as well"
    ]
    parts = [part for change in changes for part in _change(change)]
    return Group(*parts, *note_lines(notes if grown else []))


def _change(change: AdapterChange) -> Iterator[RenderableType]:
    kinds: dict[str, list[MatrixChange]] = {}
    for matrix in change.matrices:
        kinds.setdefault(matrix.name.rpartition(".")[2], []).append(matrix)
    ratio = "|dW-dW'|/|dW|"
    rows = [_kind_row(kind, matrices) for kind, matrices in kinds.items()]
    yield terminal_table(rows, f"{change.action}; change is {ratio}", right=("rank", "most in"))
    share = change.error / change.frobenius if change.frobenius else 0.0
    whole = f"in all {len(change.matrices)} matrices {ratio} = {share:.3g}"
    yield Text(terminal_text(f"{whole}; written to {change.out}") + "\n")


def _kind_row(kind: str, matrices: Sequence[MatrixChange]) -> dict[str, object]:
    """The matrices of one kind, over all layers; norms are of all of them together."""
    before, after, error = (
        hypot(*(getattr(matrix, name) for matrix in matrices))
        for name in ("frobenius_before", "frobenius_after", "error")
    )
    worst = max(matrices, key=lambda m: m.error / m.frobenius_before if m.frobenius_before else 0.0)
    intruders = [m.intruders for m in matrices if m.intruders is not None]
    layer = layer_index(worst.name)
    return {
        "matrices": kind,
        "layers": len(matrices),
        "rank": f"{_span(m.rank_before for m in matrices)} to "
        f"{_span(m.rank_after for m in matrices)}",
        "|dW|": before,
        "|dW'|": after,
        "change": error / before if before else 0.0,
        "most in": "-" if layer is None else f"layer {layer}",
        **({"intruders": sum(intruders)} if intruders else {}),
    }


def _span(ranks: Iterable[int]) -> str:
    known = set(ranks)
    return str(*known) if len(known) == 1 else f"{min(known)}-{max(known)}"
