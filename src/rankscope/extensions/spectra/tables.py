"""Spectra as tables, by matrix, layer and module type, and in the terminal."""

from collections.abc import Iterable, Iterator, Sequence
from math import hypot
from statistics import fmean as mean
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rankscope.cli.terminal import folded, note_lines, terminal_table
from rankscope.extensions.spectra.record import (
    MatrixSpectrum,
    SpectraRecord,
    growth_of_given,
    layer_index,
)
from rankscope.formatting import count
from rankscope.records import StudyRecords, TrialRecords
from rankscope.report.analysis_tables import TableRow
from rankscope.report.columns import Column

if TYPE_CHECKING:
    from rankscope.extensions.spectra.shrink import AdapterChange, MatrixChange

SHOWN_LEFT_OUT = 3  # Parameters named that an adapter leaves out
SIDED = (
    "similarity_index",
    "similarity_max",
    "similarity_subspace",
    "chance_index",
    "chance_max",
    "chance_subspace",
)
"""Fields that are pairs (left, right); each becomes two columns."""
AVERAGED = (
    *("relative", "effective_rank", "stable_rank", "intruder_energy"),
    *(f"{name}_{side}" for name in SIDED for side in ("left", "right")),
)


def spectra_tables(models: Sequence[tuple[TableRow, SpectraRecord]]) -> dict[str, pd.DataFrame]:
    """Return ``matrices``, ``layers`` and ``modules``; rows begin with their model's columns."""
    rows = [model | matrix_row(matrix) for model, found in models for matrix in found.matrices]
    if not rows:
        return {}
    matrices, identity = pd.DataFrame(rows), list(models[0][0])
    return {
        "matrices": matrices,
        "layers": _summed(matrices, [*identity, "layer"]),
        "modules": _summed(matrices, [*identity, "module"]),
    }


def matrix_row(matrix: MatrixSpectrum) -> TableRow:
    """Return the fields of a matrix; each pair (left, right) has two columns."""
    row: TableRow = {"out": matrix.shape[0], "in": matrix.shape[1]}
    row |= matrix.model_dump(exclude={"schema_version", "shape", *SIDED})
    for name in SIDED:
        row[f"{name}_left"], row[f"{name}_right"] = getattr(matrix, name)
    return row


def _summed(matrices: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return one row per value of ``keys``: norms add in squares, counts add, the rest are
    means."""
    squares = matrices.assign(frobenius=matrices["frobenius"] ** 2, matrices=1)
    sums = dict.fromkeys(("matrices", "frobenius", "intruders", "ill_conditioned"), "sum")
    groups = squares.groupby(keys, sort=False, dropna=False)
    table = groups.agg({**sums, **dict.fromkeys(AVERAGED, "mean")}).reset_index()
    return table.assign(frobenius=table["frobenius"] ** 0.5)


_RELATIVE = "/|W0|"
MODULE_TITLES = {
    "relative": _RELATIVE,
    "effective_rank": "eff. rank",
    "stable_rank": "stable rank",
    "subspace": "subspace",
    "chance": "chance",
    "intruders": "intruders",
    "intruder_energy": "energy",
}
"""Columns of ``modules`` on the terminal."""


def inspection_tables(study: StudyRecords) -> RenderableType:
    """Show a row per given model, then each model by module, and notes."""
    found = [(t, s) for t in study.trials if (s := t.analysis(SpectraRecord)) and s.matrices]
    tables = [_models(study.model.label, found)] if found else []
    tables += [_modules(trial.spec.arm_label, spectra) for trial, spectra in found]
    forced = [
        f"{t.spec.arm_label}: records another base; compared with this one because of --force"
        for t in study.trials
        if t.spec.given and t.spec.given.other_base is not None
    ]
    return Group(*tables, *note_lines([*forced, *(_notes(found) if found else ())]))


def _notes(found: Sequence[tuple[TrialRecords, SpectraRecord]]) -> Iterator[str]:
    """Yield notes: striking values, the meaning of the tables, growth with rank, uncertain
    vectors."""
    for trial, spectra in found:
        yield _largest_update(trial.spec.arm_label, spectra)
    yield (
        "subspace: share of the span of the leading singular vectors that was kept (1 is all, "
        "chance is what unrelated vectors give); intruders: leading vectors unlike any of the "
        "base's, energy is their share. Larger updates and intruders may come with forgetting; "
        "to know, score a task that was not trained: rankscope eval"
    )
    if (growth := growth_of_given([trial for trial, _ in found])) is not None:
        yield (
            f"|dW| = {growth.start:.3g} + {growth.slope:.3g} ln r over ranks "
            f"{', '.join(map(str, growth.ranks))}: residual {growth.rms:.2g} (root mean square); "
            f"r^{growth.power:.2g} leaves {growth.power_rms:.2g}"
        )
    for trial, spectra in found:
        uncertain = sum(m.ill_conditioned for m in spectra.matrices)
        total = sum(m.top_k for m in spectra.matrices)
        if uncertain:
            yield (
                f"{trial.spec.arm_label}: {uncertain} of {total} vectors compared are in clusters "
                "of close singular values, in which single vectors mean little"
            )


def _largest_update(label: str, spectra: SpectraRecord) -> str:
    largest = max(spectra.matrices, key=lambda m: m.relative)
    examined = sum(len(m.largest_cosines) for m in spectra.matrices)
    return (
        f"{label}: |dW| is {100 * mean(m.relative for m in spectra.matrices):.2g} % of |W0| "
        f"on average, most in {largest.name} ({100 * largest.relative:.2g} %); "
        f"{spectra.intruders:,} of {examined:,} leading vectors are intruders"
    )


def _models(base: str, found: Sequence[tuple[TrialRecords, SpectraRecord]]) -> Table:
    rows = [
        {
            "model": trial.spec.arm_label,
            "kind": trial.spec.method,
            "rank": trial.spec.rank,
            "matrices": len(spectra.matrices),
            "|dW|": spectra.frobenius,
            _RELATIVE: mean(m.relative for m in spectra.matrices),
            "eff. rank": mean(m.effective_rank for m in spectra.matrices),
            "intruders": spectra.intruders,
        }
        for trial, spectra in found
    ]
    return terminal_table(rows, f"tuned models of {base}")


def _modules(label: str, spectra: SpectraRecord) -> Table:
    modules = spectra_tables([({}, spectra)])["modules"]
    for title, field in (("subspace", "similarity_subspace"), ("chance", "chance_subspace")):
        modules[title] = modules[[f"{field}_left", f"{field}_right"]].mean(axis=1)
    shown = modules.rename(columns=MODULE_TITLES)[["module", *MODULE_TITLES.values()]]
    columns = {"subspace": Column(digits=4), "chance": Column(digits=3), "energy": Column(digits=3)}
    return terminal_table(shown.to_dict("records"), f"{label}, means over layers", columns)


def changes_tables(changes: Sequence["AdapterChange"]) -> RenderableType:
    """List the changes of ``shrink``: per adapter, a row per kind of matrix and one of the
    whole."""
    return Group(*(part for change in changes for part in _change(change)))


def _change(change: "AdapterChange") -> Iterator[RenderableType]:
    kinds: dict[str, list[MatrixChange]] = {}
    for matrix in change.matrices:
        kinds.setdefault(matrix.name.rpartition(".")[2], []).append(matrix)
    ratio = "|dW-dW'|/|dW|"
    rows = [_kind_row(kind, matrices) for kind, matrices in kinds.items()]
    yield terminal_table(rows, f"{change.action}; change is {ratio}")
    share = change.error / change.frobenius if change.frobenius else 0.0
    whole = f"in all {len(change.matrices)} matrices {ratio} = {share:.3g}"
    yield Group(folded(f"{whole}; written to {change.out}"), Text())
    if change.uniform is not None:
        rank, parameters, kept = change.uniform
        rows = [
            {"ranks": "by module", "parameters": change.parameters, "energy kept": change.kept},
            {"ranks": f"{rank} in each", "parameters": parameters, "energy kept": kept},
        ]
        yield terminal_table(
            rows,
            "|dW'|^2/|dW|^2",
            {"parameters": Column(digits=0), "energy kept": Column(digits=4)},
        )
    if change.left_out:
        largest = sorted(change.left_out, key=lambda name: -change.left_out[name])[:SHOWN_LEFT_OUT]
        named = ", ".join(f"{name} ({change.left_out[name]:.2%})" for name in largest)
        tensors = count(len(change.left_out), "tensor")
        lost = f"{sum(change.left_out.values()):.2%} of the whole update's energy |dW|^2"
        yield Group(folded(f"not in the adapter: {tensors} with {lost}: {named}"), Text())


def _kind_row(kind: str, matrices: Sequence["MatrixChange"]) -> dict[str, object]:
    """Return a row for the matrices of one kind over all layers, with their joint norms."""
    before, after, error = (
        hypot(*(getattr(matrix, name) for matrix in matrices))
        for name in ("frobenius_before", "frobenius_after", "error")
    )
    worst = max(matrices, key=lambda m: m.error / m.frobenius_before if m.frobenius_before else 0.0)
    layer = layer_index(worst.name)
    return {
        "matrices": kind,
        "layers": len(matrices),
        "rank": f"{_span(m.rank_before for m in matrices)} to "
        f"{_span(m.rank_after for m in matrices)}",
        "|dW|": before,
        "|dW'|": after,
        "change": error / before if before else 0.0,
        "most in": None if layer is None else f"layer {layer}",
    }


def _span(ranks: Iterable[int]) -> str:
    known = set(ranks)
    return str(*known) if len(known) == 1 else f"{min(known)}-{max(known)}"
