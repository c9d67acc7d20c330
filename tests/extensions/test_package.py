"""A package of others adds a method, a scorer, an analysis and an executor by entry points."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = """
name: small
model: pocket
tasks: [{name: pocket_med, scorer: letter}]
arms: [{method: half, rank: 2, lr: 2e-3}]
seeds: [0]
train: {max_steps: 2, batch_size: 2, gradient_accumulation: 1, max_length: 64}
evaluate: {max_items: 8}
analyze: {largest: {enabled: true}}
"""
READ = """
import sys, rankscope
from rankscope.config.loader import study_json_schema
schema = str(study_json_schema())
assert all(f"'{name}'" in schema for name in ("half", "letter", "largest"))
from pathlib import Path
from rankscope.config.loader import load_study_file
config = load_study_file(Path("study.yaml"), ["executor={serial: {most: 7}}"])
assert config.executor.settings.start(config, None).most == 7
assert "torch" not in sys.modules
table = rankscope.load("out").analyses["largest"]
assert table["largest"].gt(0).all() and table["arm"].str.startswith("half").all(), table
"""


@pytest.fixture
def site(tmp_path: Path) -> dict[str, str]:
    """The environment in which the package is installed."""
    folder = tmp_path / "site"
    shutil.copytree(Path(__file__).parent, folder)
    (folder / "more-1.dist-info").mkdir()
    (folder / "more-1.dist-info/METADATA").write_text("Name: more\nVersion: 1\n", "utf-8")
    entry = "[rankscope]\nmine = more\nserial = executor\n"
    (folder / "more-1.dist-info/entry_points.txt").write_text(entry, "utf-8")
    paths = (str(folder), os.environ.get("PYTHONPATH", ""))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def test_a_study_uses_what_a_package_brings(site: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY, "utf-8")

    def ran(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=tmp_path, env=site, capture_output=True, text=True)

    done = ran("-m", "rankscope", "run", "study.yaml", "--out", "out")
    assert done.returncode == 0, done.stderr
    read = ran("-c", READ)
    assert read.returncode == 0, read.stderr
    more = tmp_path / "site" / "more.py"
    more.write_text("import nowhere\n", "utf-8")
    refused = ran("-m", "rankscope", "check", "study.yaml").stderr
    assert "the entry point 'mine' = 'more'" in refused
    assert "uninstall its package" in refused.partition("Traceback")[0]
    assert "quickstart" in ran("-m", "rankscope", "--help").stdout
    own = Path(__file__).with_name("more.py")
    more.write_text(own.read_text("utf-8").replace('"half"', '"lora+"'), "utf-8")
    assert "Method 'lora+'" in ran("-m", "rankscope", "check", "study.yaml").stderr
