"""Draw the rooms of Rankscope from their imports, as the picture of CONTRIBUTING.md.

    python scripts/architecture_picture.py

The imports are those that tests/test_imports.py checks; a test compares the picture with the code.
A room stands right of every room that it imports. Arrows go from an imported room to the one that
imports it, unless a way through other rooms says so already.
"""

import ast
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAW = runpy.run_path(str(ROOT / "tests" / "test_imports.py"))
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
ROOMS = (*LAW["WALK"], "store")
SEAMS = {
    "data": "tasks",
    "models": "methods/",
    "evaluate": "scorers/",
    "report": "figures/",
    "run": "executors/",
}
"""What one file or folder adds to a room."""
ROLES = {"store": "the ledger", "run": "conducts", "cli": "parses, prints", "advise": "decides"}
WIDTH, HEIGHT, STEP_X, STEP_Y = 92, 50, 112, 66
HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" \
font-family="Helvetica, Arial, sans-serif" text-anchor="middle" role="img">
<title>Rooms of Rankscope, each right of those that it imports; blue: what a file adds</title>
<style>rect{{fill:#f8fafc;stroke:#64748b}}path{{fill:none;stroke:#94a3b8}}\
.n{{font-size:14px;font-weight:600;fill:#0f172a}}.s{{font-size:11px;fill:#475569}}\
.e{{font-size:11px;fill:#1d4ed8}}</style>
<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" \
orient="auto"><path d="M0 0 8 4 0 8z" style="fill:#94a3b8;stroke:none"/></marker></defs>
<rect width="{width}" height="{height}" style="fill:#fff;stroke:none"/>
"""


def imports() -> dict[str, set[str]]:
    """By room, the other rooms that it imports."""
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in LAW["SOURCE"].rglob("*.py"):
        if (room := LAW["room_of"](path)) in found:
            tree, package = ast.parse(path.read_text("utf-8")), LAW["package_of"](path)
            others = {other for _, other in LAW["imported_rooms"](tree, package)}
            found[room] |= others & found.keys() - {room}
    return found


def drawn(needs: dict[str, set[str]]) -> str:
    """The picture as SVG. ``needs`` has no circle."""
    columns: dict[str, int] = {}
    while len(columns) < len(needs):
        for room, others in needs.items():
            if others <= columns.keys():
                columns.setdefault(room, max((columns[o] + 1 for o in others), default=0))
    rows: dict[str, int] = {}
    for room in sorted(needs, key=ROOMS.index):
        rows[room] = sum(columns[other] == columns[room] for other in rows)
    for room in needs.keys() - set().union(*needs.values()):
        if columns[room] < max(columns.values()):  # below the arrows that pass its column
            rows[room] = max(rows.values()) + 1
    places = {r: (8 + STEP_X * columns[r], 8 + STEP_Y * rows[r]) for r in needs}
    width = 16 + STEP_X * max(columns.values()) + WIDTH
    height = 16 + STEP_Y * max(rows.values()) + HEIGHT
    parts = [HEAD.format(width=width, height=height)]
    for room in sorted(needs, key=ROOMS.index):
        others = needs[room]
        through = set().union(*(all_needs(needs, other) for other in others))
        for other in sorted(others - through, key=ROOMS.index):
            (x, y), (to_x, to_y) = places[other], places[room]
            y, to_y, gap = y + HEIGHT // 2, to_y + HEIGHT // 2, to_x - STEP_X + WIDTH
            way = f"M{x + WIDTH} {y}H{gap}C{gap + 14} {y} {gap + 2} {to_y} {to_x - 2} {to_y}"
            parts.append(f'<path d="{way}" marker-end="url(#a)"/>\n')
    for room, (x, y) in places.items():
        kind, text = ("e", SEAMS[room]) if room in SEAMS else ("s", ROLES.get(room, ""))
        middle = x + WIDTH // 2
        parts.append(
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="7"/>'
            f'<text class="n" x="{middle}" y="{y + (22 if text else 30)}">{room}</text>'
            f'<text class="{kind}" x="{middle}" y="{y + 39}">{text}</text>\n'
        )
    return "".join([*parts, "</svg>\n"])


def all_needs(needs: dict[str, set[str]], room: str) -> set[str]:
    """The rooms that a room imports, or that one of these does."""
    return needs[room].union(*(all_needs(needs, other) for other in needs[room]))


if __name__ == "__main__":
    PICTURE.write_text(drawn(imports()), "utf-8")
