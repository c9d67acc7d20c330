"""The first lesson runs as it is written, and shows what its text promises."""

import ast
import json
import runpy
from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first-study.ipynb"


def script(cells: list[str]) -> str:
    """The cells as one program that collects in ``shown`` what each would display."""
    lines = ["shown = []"]
    for cell in cells:
        body = ast.parse(cell).body
        if isinstance(body[-1], ast.Expr):
            last = ast.unparse(body.pop())
            lines += [*map(ast.unparse, body), f"shown.append({last})"]
        else:
            lines.append(cell)
    return "\n".join(lines)


def test_the_first_lesson_runs_and_shows_an_answer_tables_and_an_adapter(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    program = tmp_path / "lesson.py"
    program.write_text(
        script(["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]), "utf-8"
    )
    answer, scores, cost, files = (
        value for value in runpy.run_path(str(program))["shown"] if value is not None
    )
    assert "pocket_med" in answer._repr_html_()
    assert set(scores["score"].columns) == {"pocket_med", "pocket_general"}
    # Three arms; the base has scores and no cost.
    assert len(scores) == len(cost) + 1 == 4
    assert scores.loc["base", ("change", "pocket_med")] == 0
    assert cost.to_numpy().min() > 0
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(files)
