"""Without any one extension the package works; its name is then refused with those that are known.

An extension is a file or a folder of a registry.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rankscope

SOURCE = Path(rankscope.__file__).parent

STUDY = """
name: smallest
model: pocket
tasks: [pocket_med]
arms: [{method: lora, rank: 2, lr: 2e-3}]
seeds: [0]
train: {max_steps: 2, batch_size: 2, gradient_accumulation: 1, max_length: 64}
evaluate: {max_items: 8}
"""
CODE = """
import sys
import rankscope.cli.application, rankscope.cli.model_verbs, rankscope.cli.study_verbs
from pathlib import Path
from rankscope.errors import UserError
from rankscope.run.outputs import write_outputs
from rankscope.run.study import Study
file = Path("study.yaml")
study, _ = write_outputs(Path("out"), Study.load(file).run("out"))
assert {trial.status for trial in study.trials} == {"done"}
for override in sys.argv[1:]:
    try:
        Study.load(file, [override])
    except UserError as error:
        print(error)
"""


OTHERS = ("report/figures/loss.py", "tools/trackers/wandb.py", "evaluate/lm_eval")
"""Extensions that no study file names."""
REMOVED = [
    {
        "analyses/heads": ("analyze.heads.enabled=true", "expected one of spectra"),
        "models/methods/dora.py": ("arms.0.method=dora", "expected one of lora, eva, full"),
        "run/executors/ray.py": ("executor=ray", "expected one of local, slurm"),
    },
    {
        "analyses/spectra": ("analyze.spectra.enabled=true", "expected one of heads"),
        "models/methods/pissa.py": ("arms.0.method=pissa", "expected one of lora, dora, eva"),
        "run/executors/slurm.py": ("executor=slurm", "expected one of local, ray"),
    },
    {
        "analyses/variants": ("evaluate.scales=[0.5]", "expected one of cross_domain, retention"),
        "models/methods/eva.py": ("arms.0.method=eva", "expected one of lora, dora, full"),
    },
]
"""Extensions with how a study file would name them, and what the refusal says. Those of one row
belong to different registries, so a row tests as much as if each were removed alone."""


@pytest.mark.parametrize("removed", REMOVED, ids=lambda removed: next(iter(removed)))
def test_without_an_extension_the_smallest_study_runs(
    tmp_path: Path, removed: dict[str, tuple[str, str]]
) -> None:
    copy = tmp_path / "src" / "rankscope"
    shutil.copytree(SOURCE, copy)
    for name in (*removed, *OTHERS):
        place = copy / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    (tmp_path / "study.yaml").write_text(STUDY, "utf-8")
    done = subprocess.run(
        [sys.executable, "-c", CODE, *(override for override, _ in removed.values())],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(copy.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refusals = [line for line in done.stdout.splitlines() if line.startswith("--set ")]
    for line, (override, known) in zip(refusals, removed.values(), strict=True):
        assert override in line
        assert known in line
