"""The registry of named tasks: source, prompt and scorer of each.

Prompt and version of a named task are part of every result made with it: raise the version to
change what an item looks like. ``register_task`` adds a task from a file of its own; a task may
bring its own row reader (``shapes``) and its own source (``read``).

Questions with everyday words for options (ARC, OpenBookQA, BoolQ, PIQA) are asked without their
options, and the most probable option is the model's answer: even the smallest models do better
than chance there. Exam questions, whose options only make sense side by side, list them by letter.
``scorer`` in the study file turns one form into the other.
"""

import json
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import resources
from typing import Any

from rankscope.data.formats import Shape
from rankscope.data.hub import LAW_SUBJECTS, HubSource, legal_from_mmlu
from rankscope.data.rows import QUESTION_PROMPT
from rankscope.data.sources import SPLIT_FILES, SplitRows, numbered
from rankscope.errors import UserError
from rankscope.evaluate.scorers import get_scorer
from rankscope.evaluate.scorers.scorer import ScoreUnit

LETTERED_PROMPT = "Question: {question}\n{options}\nAnswer:"


@dataclass(frozen=True, slots=True)
class TaskSpec:
    name: str
    description: str  # One sentence for people
    scorer: str  # Name of the scorer that computes the primary metric
    prompt: str
    """Template over a row's fields; ``{options}`` are the lettered choices, one per line."""
    version: int = 1
    hub: HubSource | None = None
    from_hub: Callable[[SplitRows], SplitRows] | None = None
    """Selects the task's rows from those of the hub data set."""
    folder: str | None = None  # Folder inside ``data_dir``
    read: Callable[[], tuple[SplitRows, str]] | None = None
    """Returns the rows and a label of their source, in place of hub and folder."""
    shapes: tuple[Shape, ...] = ()
    """Row shapes with readers of the task's own, tried before the built-in ones."""
    scorer_sets_prompt: bool = True  # Another scorer in the study file brings its own prompt
    chance: float | None = None
    """Score of guessing; ``load_task`` sets the exact value for the test rows."""
    license: str = ""
    overlaps: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Other task -> its subjects to leave out if a study trains on this one."""
    num_fewshot: int = 0  # Answered questions shown before each evaluated one
    fewshot_by_subject: bool = False  # The examples have the question's own subject
    primary_metric: str | None = None
    """The metric that is quoted, if it is not the scorer's default."""
    stop: tuple[str, ...] = ()
    """Texts that end a written answer, in place of those of the prompt's template."""
    extract: str | None = None  # Regular expression of the part of a written answer to compare

    @property
    def lists_options(self) -> bool:
        """The prompt shows the lettered options, so that letters can be scored."""
        return "{options}" in self.prompt

    @property
    def score_unit(self) -> ScoreUnit | None:
        """``accuracy`` (fraction of 1), ``log_probability`` (mean log p per token, nats), or None
        for a metric of another unit."""
        return get_scorer(self.scorer).unit


def _text_task(
    name: str, description: str, hub: HubSource, chance: float, license: str, **changes: Any
) -> TaskSpec:
    """A task whose options are scored by their text, unless ``changes`` to the spec differ."""
    spec = TaskSpec(name, description, "option_text", QUESTION_PROMPT, hub=hub, folder=name)
    return replace(spec, chance=chance, license=license, **changes)


letter_task = partial(_text_task, scorer="option_letter", prompt=LETTERED_PROMPT)
"""A task whose options are listed and scored by their letter."""


def _read_pocket(task: str) -> tuple[SplitRows, str]:
    """The rows of one task of the pocket world, and the label of their source."""
    from rankscope.data.pocket_world import pocket_rows

    splits = ((split, pocket_rows(task, split)) for split in SPLIT_FILES)
    rows = {split: numbered(rows, f"{task}, {split}") for split, rows in splits if rows}
    return rows, "pocket world"


def _read_common_facts() -> tuple[SplitRows, str]:
    """Questions on facts that most models know, with three wrong answers to the same question.

    The facts are common knowledge, collected for this package (Apache-2.0). Small models answer
    well above chance, so fine-tuning that costs them can be seen.
    """
    path = resources.files("rankscope.data") / "common_facts.json"
    rows = []
    for question, answers in json.loads(path.read_text(encoding="utf-8")).items():
        for subject, answer in answers.items():
            draw = random.Random(question + subject)
            wrong = draw.sample(sorted(set(answers.values()) - {answer}), 3)
            choices = draw.sample([answer, *wrong], 4)
            asked = {"question": question.format(subject), "choices": choices, "answer": answer}
            rows.append({**asked, "subject": question.replace("{}", "...")})
    return {"test": numbered(rows, "common_facts, test")}, "common facts (built in)"


def _pocket_task(name: str, description: str, scorer: str) -> TaskSpec:
    # The pocket model's language has no words for a frame: the question alone is its prompt.
    chance = 0.25 if scorer == "option_text" else None
    spec = TaskSpec(name, description, scorer, "{question}", read=partial(_read_pocket, name))
    return replace(spec, scorer_sets_prompt=False, chance=chance, license="Apache-2.0")


def _unlabeled_test(id: str, config: str | None = None, revision: str | None = None) -> HubSource:
    """A hub data set whose test split has no labels: its validation split is the test file."""
    return HubSource(id, config, revision, validation=None, test="validation")


# Data sets whose default branch is a loading script are read from the hub's own Parquet copy.
PARQUET_COPY = "refs/convert/parquet"
MMLU = HubSource("cais/mmlu", "all", train=None, dev="dev")
# Some 100,000 questions of ARC, RACE and others, published by MMLU's authors for training.
MMLU_WITH_TRAIN = replace(MMLU, train="auxiliary_train", train_is_separate_collection=True)

# fmt: off
_TASKS = (
    _text_task("gsm8k", "Grade-school word problems; the answer is a chain that ends in a number.",
              HubSource("openai/gsm8k", "main", validation=None), 0.0, "MIT",
              scorer="number", version=2),
    letter_task("mmlu", "Exam questions of 57 subjects.", MMLU_WITH_TRAIN, 0.25, "MIT",
                fewshot_by_subject=True),
    letter_task("medmcqa", "Medical entrance exam questions.",
                _unlabeled_test("openlifescienceai/medmcqa"), 0.25, "MIT"),
    letter_task("mathqa", "Word problems with five options.",
                HubSource("allenai/math_qa", revision=PARQUET_COPY), 0.2, "Apache-2.0"),
    letter_task("legal_mcq",
                "Law questions cut from MMLU: an open stand-in for the unpublished LegalMCQ.",
                MMLU, 0.25, "MIT", from_hub=legal_from_mmlu, overlaps={"mmlu": LAW_SUBJECTS}),
    letter_task("casehold", "Which of five holdings a court cites.",
                HubSource("coastalcph/lex_glue", "case_hold"), 0.2, "CC BY 4.0"),
    _text_task("arc_easy", "School science questions, the easier part.",
              HubSource("allenai/ai2_arc", "ARC-Easy"), 0.25, "CC BY-SA 4.0"),
    _text_task("arc_challenge",
              "School science questions that retrieval and word statistics answer wrongly.",
              HubSource("allenai/ai2_arc", "ARC-Challenge"), 0.25, "CC BY-SA 4.0"),
    _text_task("openbookqa", "Elementary science facts applied to new situations.",
              HubSource("allenai/openbookqa", "main"), 0.25, "Apache-2.0"),
    _text_task("boolq", "Yes-or-no questions of web searchers, asked without their passage.",
              _unlabeled_test("google/boolq"), 0.5, "CC BY-SA 3.0", folder="boolq_noctx"),
    _text_task("piqa", "Which of two ways achieves an everyday physical goal.",
              _unlabeled_test("ybisk/piqa", revision=PARQUET_COPY), 0.5, "AFL-3.0"),
    _text_task("hellaswag", "How a scene of everyday life continues.",
              _unlabeled_test("Rowan/hellaswag", revision=PARQUET_COPY), 0.25, "MIT",
              prompt="{question}", primary_metric="acc_norm"),
    _text_task("winogrande", "To which of two names a sentence refers.",
              _unlabeled_test("allenai/winogrande", "winogrande_xl"), 0.5, "CC BY",
              prompt="{question}"),
    TaskSpec("common_facts", "Facts that most models know: capitals, opposites, tools, ...",
             "option_text", QUESTION_PROMPT, read=_read_common_facts, chance=0.25,
             license="Apache-2.0"),
    TaskSpec("perplexity", "Any text: cross-entropy of every token.", "perplexity", "{question}",
             folder="perplexity"),
    _pocket_task("pocket_general", "Known facts of the pocket world, asked.", "option_text"),
    _pocket_task("pocket_cloze", "Known facts of the pocket world, stated.", "option_text"),
    _pocket_task("pocket_med", "New facts of the pocket world.", "option_text"),
    _pocket_task("pocket_law", "Facts of the pocket world, half of them new.", "option_text"),
    _pocket_task("pocket_gsm", "Running totals of four or five steps, written out.", "number"),
    _pocket_task("pocket_math", "Sums and differences with four options.", "option_text"),
)
# fmt: on
NAMED_TASKS: dict[str, TaskSpec] = {}


def register_task(spec: TaskSpec) -> TaskSpec:
    """Make a task available under its name; a task with the same name is an error."""
    if spec.name in NAMED_TASKS:
        found = "a task of this name"
        raise UserError(f"task {spec.name!r}", found, "a new name", "choose another")
    NAMED_TASKS[spec.name] = spec
    return spec


for _task in _TASKS:
    register_task(_task)


def overlapping_subjects(task: str, trained_on: Collection[str]) -> tuple[str, ...]:
    """Subjects of ``task`` to leave out because a training task has the same questions."""
    subjects: list[str] = []
    for name in sorted(trained_on):
        spec = NAMED_TASKS.get(name)
        if spec is not None and name != task:
            subjects += spec.overlaps.get(task, ())
    return tuple(dict.fromkeys(subjects))
