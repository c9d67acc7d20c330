"""Studies the report's tests are written on: an ordinary one and a hostile one."""

from dataclasses import replace
from functools import cache

from synthetic_study import Truth, synthetic_study

from rankscope.advise.recommend import recommend
from rankscope.advise.subjects import subject_changes
from rankscope.config.task import TaskConfig
from rankscope.records import Recommendation, StudyRecords

OVERRIDE = "\u202e"
"""RIGHT-TO-LEFT OVERRIDE: shows what follows reversed."""
ATTACKS = (
    "<img src=x onerror=\"document.documentElement.dataset.owned='img'\">",
    "</script><script>document.documentElement.dataset.owned='script'</script>",
    "<!--<script>",
    '" onmouseover="x" data-x="',
    "=HYPERLINK(1)",
    "[click](javascript:alert(1)) {{ 7 * 7 }} %{x} $x$",
    f"safe{OVERRIDE}gpj.exe\x00\x1b[31m\u2028",
)
HOSTILE = " ".join(ATTACKS)
MEGABYTE = "A" * 1_000_000

ORDINARY = Truth(
    ranks=(2, 8, 32),
    lrs=(1e-3, 3e-3),
    tasks=("med", "law"),
    retention=("general",),
    num_items=60,
    failed={(32, 3e-3, 1): "diverged"},
    contamination=2,
)


def study_and_advice(truth: Truth) -> tuple[StudyRecords, Recommendation]:
    """A simulated study with its recommendation."""
    study = synthetic_study(truth)
    advice = recommend(study)
    return study, advice.model_copy(update={"subjects": subject_changes(study, advice)})


@cache
def ordinary_study() -> tuple[StudyRecords, Recommendation]:
    """Two training tasks, six LoRA arms and full fine-tuning, one failed trial each, contamination."""
    return study_and_advice(ORDINARY)


def hostile_study() -> tuple[StudyRecords, Recommendation]:
    """The ordinary study with attacks in every text a file or a data set can bring in."""
    study, advice = ordinary_study()
    renamed = {task.name: f"{task.name} {HOSTILE}" for task in study.tasks}
    study = replace(
        study,
        name=HOSTILE,
        config=study.config.model_copy(
            update={
                "name": HOSTILE,
                "data_dir": MEGABYTE,
                "tasks": [TaskConfig.model_construct(name="med", prompt=HOSTILE)],
            }
        ),
        model=study.model.model_copy(update={"label": HOSTILE, "architecture": HOSTILE}),
        tasks=tuple(
            t.model_copy(update={"name": renamed[t.name], "source": HOSTILE, "metric": HOSTILE})
            for t in study.tasks
        ),
        trials=tuple(
            replace(
                t,
                spec=t.spec.model_copy(update={"task": renamed[t.spec.task]}),
                failure=t.failure and HOSTILE + MEGABYTE,
            )
            for t in study.trials
        ),
        evals={(i, renamed[t], s): e for (i, t, s), e in study.evals.items()},
        items={},
        provenance=study.provenance.model_copy(
            update={"processor": HOSTILE, "libraries": {HOSTILE: HOSTILE}}
        ),
        notes=(HOSTILE, MEGABYTE),
    )
    return study, _renamed(advice, renamed)


def _renamed(advice: Recommendation, names: dict[str, str]) -> Recommendation:
    text = advice.model_dump()
    for task in text["advice"]:
        task["task"] = names[task["task"]]
        task["headline"] = HOSTILE
        for arm in [*task["arms"], *([task["chosen"]] if task["chosen"] else [])]:
            arm["task"] = names[arm["task"]]
            for group in ("transfer", "retention"):
                arm[group] = {names[key]: value for key, value in arm[group].items()}
        for reason in task["reasons"]:
            reason["text"] = HOSTILE
    for change in text["subjects"]:
        change["task"] = names[change["task"]]
        change["tested_on"] = names[change["tested_on"]]
        change["subject"] += HOSTILE
    text["method"] = HOSTILE
    return Recommendation.model_validate(text)
