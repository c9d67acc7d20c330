"""Judge the claims by the kept records, and write the tables of their page.

    python evidence/claims_board.py

studies/claims/README.md has the verdicts and the arms of every study. Every number comes from
records/; a test compares the two.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from claims_judges import (
    FAILS,
    HOLDS,
    MARGIN,
    OPEN,
    UNTESTABLE,
    Verdict,
    capacity,
    full_forgets_less,
    harm,
    interval,
    intruders,
    label,
    learns_less,
    less_and_less,
    matches_full,
    norm_and_similarity,
    rate_ratio,
    recall_and_reasoning,
    spread_by_rate,
)
from claims_records import TEXT_METRIC, Grid
from rankscope.formatting import percent

ROOT = Path(__file__).parent
PAGE = ROOT / "studies" / "claims" / "README.md"
RECORDS = ROOT / "records"
ELSEWHERE = set(
    "alpha-ranks alpha-rates known-task known-task-full low-rank-in-effect low-rates "
    "medicine-to-maths methods methods-rates paper-protocol paper-protocol-recall "
    "paper-protocol-recall-seeds paper-protocol-seeds".split()
)
"""Judged in posterior_claims.py."""
BEGIN, END = "<!-- numbers: evidence/{} -->", "<!-- end of numbers -->"

CLAIMS: dict[int, tuple[str, str]] = {
    1: ("Full fine-tuning harms models under 300M (below zero-shot), LoRA does not", "2606.06920"),
    2: (
        "The best LoRA rate is about 10 times full fine-tuning's and hardly depends on the rank",
        "LoRA Without Regret; Tinker",
    ),
    3: ("The rank matters at high rates only", "Tinker's sweeps"),
    4: ("LoRA learns less and forgets less", "2405.09673"),
    5: ("The opposite: full fine-tuning forgets less than r = 32", "PEFT's method comparison"),
    6: ("r = 32 to 64 match full fine-tuning on reasoning", "2512.15634"),
    7: ("Recall hardly depends on the rank, reasoning peaks at 32 to 64", "2512.15634"),
    8: (
        "The norm of the update grows like log r; LoRA keeps the leading singular vectors, full "
        "fine-tuning does not",
        "2512.15634",
    ),
    9: ("Intruder dimensions fall with the rank; about none in full fine-tuning", "2410.21228"),
    10: ("Low ranks fall behind where parameters < completion tokens", "LoRA Without Regret"),
}
"""Claim and source by number."""


def verdicts(grids: Mapping[str, Grid]) -> dict[int, list[tuple[str, Verdict]]]:
    """By claim, the studies that were asked and what they answer."""
    judges: list[tuple[int, str, Callable[[Grid], Verdict]]] = [
        (1, "maths-grid", harm),
        (2, "maths-grid", rate_ratio),
        (2, "maths-rates", rate_ratio),
        (3, "maths-grid", spread_by_rate),
        (3, "maths-rates", spread_by_rate),
        (4, "maths-grid", less_and_less),
        (4, "maths-rates", partial(learns_less, rank=4)),
        (5, "maths-grid", full_forgets_less),
        (6, "maths-grid", matches_full),
        (8, "maths-grid", norm_and_similarity),
        (9, "maths-grid", intruders),
        (10, "maths-grid", capacity),
        (5, "maths-forgetting", partial(full_forgets_less, excluded=MARGIN)),
        (5, "forgetting-seeds", partial(full_forgets_less, excluded=MARGIN)),
        (10, "maths-capacity", capacity),
    ]
    found: dict[int, list[tuple[str, Verdict]]] = {}
    for number, name, judge in judges:
        if name in grids:
            found.setdefault(number, []).append((name, judge(grids[name])))
    for maths, recall, asked in (
        ("maths-grid", "recall-grid", "recall-grid"),
        ("maths-grid", "recall-seeds", "recall-seeds"),
        ("maths-rates", "recall-seeds", "maths-rates"),
    ):
        if {maths, recall} <= set(grids):
            both = recall_and_reasoning(grids[maths], grids[recall])
            found.setdefault(7, []).append((asked, both))
    return found


def claims_table(grids: Mapping[str, Grid]) -> list[str]:
    rows = ["| # | claim | verdict | P | measured | detectable | study |", "|---" * 7 + "|"]
    found = verdicts(grids)
    for number, (claim, source) in CLAIMS.items():
        for index, (name, verdict) in enumerate(found.get(number, [])):
            asked = f"look {index + 1}" if index else f"{claim} ({source})"
            is_open = verdict.verdict in (OPEN, UNTESTABLE)
            why = f": {verdict.would_settle}" if is_open else ""
            rows.append(
                f"| {number} | {asked} | **{verdict.verdict}**{why} | "
                f"{'' if verdict.p is None else percent(verdict.p)} | {verdict.measured} | "
                f"{verdict.detectable} | [{name}]({name}.yaml) |"
            )
        if number not in found:
            rows.append(f"| {number} | {claim} ({source}) | not measured yet | | | | |")
    latest = [answers[-1][1].verdict for answers in found.values()]
    settled, untestable = latest.count(HOLDS) + latest.count(FAILS), latest.count(UNTESTABLE)
    told = f"By the latest look of {len(CLAIMS)} claims {settled} are settled here, "
    told += f"{untestable} are not testable, and of {latest.count(OPEN)} this cannot tell. "
    told += f"Each is judged on its task, with a margin of {MARGIN} nats per token."
    return [told, "", *rows]


def studies_table(grids: Mapping[str, Grid]) -> list[str]:
    rows = ["| study | model | trained on | trials | diverged | day | processor | time | commit |"]
    rows.append("|---|---|---|---|---|---|---|---|---|")
    for name, grid in grids.items():
        about = grid.about
        day = about["provenance"]["created"][:10]
        diverged = ", ".join(f"{count} of {label(arm)}" for arm, count in grid.diverged)
        rows.append(
            f"| [{name}]({name}.yaml) | {about['model']['label']} | "
            f"{grid.task} | {len(grid.about['trials'])} | {diverged or 'none'} | {day} | "
            f"{about['provenance']['processor']}, {about['provenance']['num_threads']} thread(s) | "
            f"{about['seconds'] / 60:.0f} min | {about['commit']} |"
        )
    return rows


def arms_table(grid: Grid) -> list[str]:
    """Test scores of every arm against the base, and what it did to the weights."""
    text = [name for name in grid.retention if grid.metric(name) == TEXT_METRIC]
    has_spectra = (grid.folder / "spectra.parquet").exists()
    columns = ["arm", "gain, validation", "gain, test"]
    columns += ["held-out text"] * bool(text) + ["norm of the update", "intruders"] * has_spectra
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for rank in grid.series:
        best = grid.tuned(rank)
        for lr in grid.rates_tried(rank):
            arm = (rank, lr)
            name = f"**{label(arm)}**" if arm == best else label(arm)
            if lr not in grid.rates(rank):
                cells = [name, *["diverged"] * (len(columns) - 1)]
                rows.append(f"| {' | '.join(cells)} |")
                continue
            cells = [name, f"{grid.validation_gain(arm):+.3f}", interval(grid.gain(arm))]
            cells += [interval(grid.retained(arm)) for _ in text]
            if has_spectra:
                count = grid.by_seed(arm, "intruders").mean()
                cells += [f"{grid.norms(arm).mean():.2f}", f"{count:.1f}"]
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def numbers(records: Path = RECORDS) -> dict[Path, str]:
    """The generated part of the page."""
    names = sorted({f.stem for f in (ROOT / "studies" / "claims").glob("*.yaml")} - ELSEWHERE)
    grids = {name: Grid(records / name) for name in names if (records / name).is_dir()}
    lines = [*claims_table(grids), "", *studies_table(grids)]
    for name, grid in grids.items():
        lines += ["", f"## {name}", "", *arms_table(grid)]
    return {PAGE: "\n".join(lines)}


def with_numbers(board: str, text: str, script: str = Path(__file__).name) -> str:
    """A page with ``text`` between its two marks."""
    begin = BEGIN.format(script)
    before, rest = board.split(begin)
    return f"{before}{begin}\n\n{text}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    for page, text in numbers().items():
        page.write_text(with_numbers(page.read_text("utf-8"), text), "utf-8")
