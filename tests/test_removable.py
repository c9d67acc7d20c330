"""Without any one extension the package works; its name is then refused with those that are known.

An extension is a file or a folder of a registry."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

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
from rankscope.cli import run_command_line
assert run_command_line(["init", "new.yaml", "--from", "study.yaml"]) == 2
assert run_command_line(["export", "out", "--patch", "study.yaml", "--out", "new"]) == 2
assert run_command_line(["check", "study.yaml", "--set", "train.devices=2"]) == 2
assert run_command_line(["import", "scores.csv", "--out", "new"]) == 2
assert run_command_line(["--help"]) == 0
"""


EXTENSIONS = {
    "analyze.heads.enabled=true": "is not a key. No key is known here.",
    "evaluate.engine=vllm": "expected one of auto, own",
    "evaluate.scales=[0.5]": "Known here: cross_domain, retention",
    "executor=slurm": "is not a key. Known here: local",
    "train.kernels=compiled": "expected one of plain",
    "tasks.0.scorer=rouge": "expected one of contains",
    "train.objective=dpo": "expected one of sft, or",
    "evaluate.cross_domain=[lm_eval:x]": "as there is no source of such tasks",
}
"""How a study file would name extensions, and what the refusal says without them."""
FILES = {
    "evaluate/scorers/math_verify.py": ("tasks.0.scorer=math_verify", "expected one of contains"),
    "models/methods/dora.py": ("arms.0.method=dora", "expected one of lora, eva, full"),
    "models/methods/pissa.py": ("arms.0.method=pissa", "expected one of lora, eva, full"),
}
"""The same of files of the core."""
OTHERS = ("extensions", "report/figures/loss.py")
"""Folders and files that no study file names."""


def copy_without(folder: Path, names: Iterable[str]) -> Path:
    """A copy of the package without some files, compiled as far as the original is."""
    shutil.copytree(SOURCE, folder / "rankscope")
    for name in names:
        place = folder / "rankscope" / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    return folder


def python(code: str, *words: object, folder: Path, path: str) -> subprocess.CompletedProcess[str]:
    """What code comes to in a folder, with another one on the path of imports."""
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, cwd=folder, env=env, check=False, capture_output=True, text=True)


def test_without_extensions_the_smallest_study_runs(tmp_path: Path) -> None:
    place = copy_without(tmp_path / "src", [*OTHERS, *FILES])
    refused = EXTENSIONS | dict(FILES.values())
    (tmp_path / "study.yaml").write_text(STUDY, "utf-8")
    done = python(CODE, *refused, folder=tmp_path, path=str(place))
    assert done.returncode == 0, done.stderr[-2000:]
    refusals = [line for line in done.stdout.splitlines() if line.startswith("--set ")]
    for line, (override, known) in zip(refusals, refused.items(), strict=True):
        assert override in line
        assert known in line
    for option in ("init --from", "export --patch"):
        assert f"{option}: expected 'trainers', an extension that is not there" in done.stderr
    assert "train.devices: expected 'shards', an extension that is not there" in done.stderr
    assert "unknown command 'import'" in done.stderr
    assert "  quickstart " in done.stdout
    assert "  import " not in done.stdout


LIST = """
import os, sys
import numpy, pandas, plotly, pyarrow, pydantic, rich, scipy.stats, typer, yaml  # once for all
for name in sys.argv[1:]:
    if os.fork() == 0:
        sys.path.insert(0, name)
        from pathlib import Path
        import rankscope.cli, rankscope.registry
        from rankscope.config.loader import load_study_file
        from rankscope.report.figures import all_sections
        load_study_file(Path("study.yaml")), all_sections()
        print(name, *(module.__name__ for module in rankscope.registry.extensions()), flush=True)
        os._exit(0)
    os.wait()
"""


def test_every_extension_can_be_removed_alone(tmp_path: Path) -> None:
    """The rest of the package is found, and its figures and verbs are loaded."""
    (tmp_path / "study.yaml").write_text(STUDY, "utf-8")
    names = sorted(place.name for place in (SOURCE / "extensions").glob("[a-z]*"))
    for name in names:
        copy_without(tmp_path / name, [f"extensions/{name}"])
    done = python(LIST, *names, folder=tmp_path, path="")
    found = [sorted(line.split()) for line in done.stdout.splitlines()]
    left = [
        sorted([name, *(f"rankscope.extensions.{other}" for other in names if other != name)])
        for name in names
    ]
    assert found == left, done.stderr[-2000:]


REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "src" / "rankscope"


def run(*words: object, folder: Path) -> str:
    """Standard output of a command that has to end well; its environment has no way to src/."""
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, folder=REPOSITORY)
    (found,) = folder.iterdir()
    return found


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of an environment with the wheel, and with the dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    run(*pip, "--quiet", wheel, folder=folder)
    # Paths named in a .pth file come after the environment's own, and their .pth files are not
    # read: an editable installation there is not found.
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = (
        path for path in PACKAGE.rglob("*") if path.is_file() and path.parent.name != "__pycache__"
    )
    assert names == {path.relative_to(PACKAGE.parent).as_posix() for path in files}


def test_the_source_archive_holds_what_its_pages_link_to(tmp_path: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path,
        folder=REPOSITORY)  # fmt: skip
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as files:
        names = {PurePosixPath(*PurePosixPath(name).parts[1:]) for name in files.getnames()}
    held = names.union(*(name.parents for name in names))
    linked = [
        PurePosixPath(link)
        for page in ("README.md", "CONTRIBUTING.md", "llms.txt")
        for link in re.findall(r"\]\(((?!https?:)[^)#]+)", (REPOSITORY / page).read_text("utf-8"))
    ]
    assert len(linked) > 20
    assert [link for link in linked if link not in held] == []


@pytest.mark.usefixtures("minutes")
def test_the_installed_wheel_runs_a_study(bin_folder: Path, tmp_path: Path) -> None:
    rankscope = bin_folder / "rankscope"
    where = run(bin_folder / "python", "-c", "import rankscope; print(rankscope.__file__)",
                folder=tmp_path)  # fmt: skip
    assert Path(where.strip()).is_relative_to(bin_folder.parent)
    assert "quickstart" in run(rankscope, "--help", folder=tmp_path)
    assert "--out" in run(rankscope, "quickstart", "--help", folder=tmp_path)
    # A preset, the pocket model's weights and the page's templates are read from the package.
    run(rankscope, "init", "study.yaml", "--preset", "pocket", folder=tmp_path)
    short = ["arms=[{method: lora, rank: 2, lr: 2e-3}]", "seeds=[0]", "train.max_steps=2",
             "evaluate.max_items=8"]  # fmt: skip
    sets = [word for value in short for word in ("--set", value)]
    run(rankscope, "run", "study.yaml", "--out", "out", *sets, folder=tmp_path)
    assert "</html>" in (tmp_path / "out" / "report.html").read_text("utf-8")
