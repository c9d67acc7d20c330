"""The named tasks, as data: source, prompt and scorer of each.

A named task's prompt and version are part of every result made with it: changing what an item
looks like means raising the version.

Questions with everyday words for options (ARC, OpenBookQA, BoolQ, PIQA) are asked without their
options, and the option the model finds likeliest is its answer: even the smallest models do better
than chance there. Exam questions, whose options only make sense side by side, list them by letter.
``scorer`` in the study file turns one form into the other.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from rankscope.config.task import Scorer
from rankscope.data.sources import LAW_SUBJECTS, HubSource

QUESTION = "Question: {question}\nAnswer:"
LETTERED = "Question: {question}\n{options}\nAnswer:"
WRITTEN_VERSION = 2
"""Version of tasks with written answers. From 2 on dashes are not read as signs, and an answer is
cut where the template's next question begins. The pocket tasks' answers have neither."""
CHOICE_SCORERS: tuple[Scorer, ...] = ("option_text", "option_letter")
WRITTEN_SCORERS: tuple[Scorer, ...] = ("number", "exact_match")
LIKELIHOODS: tuple[Scorer, ...] = ("loss", "perplexity")


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What a task is: where its rows come from, how they are asked and how answers are scored."""

    name: str
    doc: str
    """One sentence for people."""
    scorer: Scorer
    """Makes the primary metric."""
    prompt: str
    """Template over a row's fields; ``{options}`` are the lettered choices, one a line."""
    version: int = 1
    hub: HubSource | None = None
    folder: str | None = None
    """Folder inside ``data_dir``."""
    chance: float | None = None
    """Score of guessing; ``load_task`` puts the exact value of the test rows here."""
    licence: str = ""
    overlaps: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Other task -> its subjects that must be left out where a study trains on this one."""
    num_fewshot: int = 0
    """Answered questions shown before each one that is scored."""
    fewshot_by_subject: bool = False
    """They are of the question's own subject."""
    primary_metric: str | None = None
    """The metric reported, where it is not the scorer's own."""
    stop: tuple[str, ...] = ()
    """Texts at which a written answer ends, in place of those of the prompt's template."""
    extract: str | None = None
    """Regular expression of the part of a written answer that is compared."""

    @property
    def lists_options(self) -> bool:
        """The prompt shows the lettered options, so that letters can be scored."""
        return "{options}" in self.prompt

    @property
    def score_unit(self) -> Literal["accuracy", "log_probability"]:
        """``accuracy`` (share of 1) or ``log_probability`` (mean log p per token, nats)."""
        return "log_probability" if self.scorer in LIKELIHOODS else "accuracy"


def _text_task(name: str, doc: str, hub: HubSource, chance: float, licence: str) -> TaskSpec:
    return TaskSpec(
        name, doc, "option_text", QUESTION, hub=hub, folder=name, chance=chance, licence=licence
    )


def _letter_task(name: str, doc: str, hub: HubSource, chance: float, licence: str) -> TaskSpec:
    return TaskSpec(
        name, doc, "option_letter", LETTERED, hub=hub, folder=name, chance=chance, licence=licence
    )


def _pocket_task(name: str, doc: str, scorer: Scorer) -> TaskSpec:
    # The pocket model's language has no frame words: the question alone is its prompt.
    chance = 0.25 if scorer == "option_text" else None
    return TaskSpec(name, doc, scorer, "{question}", chance=chance, licence="Apache-2.0")


# Data sets whose default branch is a loading script are read from the hub's own Parquet copy.
PARQUET_COPY = "refs/convert/parquet"
MMLU_HUB = HubSource("cais/mmlu", "all", train=None, dev="dev")
# Some 100,000 questions of ARC, RACE and others, which MMLU's authors publish to train on.
MMLU_TO_TRAIN_ON = replace(MMLU_HUB, train="auxiliary_train", train_is_separate_collection=True)

_SPECS = (
    replace(
        _text_task(
            "gsm8k",
            "Grade-school word problems, answered by a chain that ends in a number.",
            HubSource("openai/gsm8k", "main", validation=None),
            0.0,
            "MIT",
        ),
        scorer="number",
        version=WRITTEN_VERSION,
    ),
    replace(
        _letter_task("mmlu", "Exam questions of 57 subjects.", MMLU_TO_TRAIN_ON, 0.25, "MIT"),
        fewshot_by_subject=True,
    ),
    _letter_task(
        "medmcqa",
        "Medical entrance exam questions.",
        HubSource("openlifescienceai/medmcqa", validation=None, test="validation"),
        0.25,
        "MIT",
    ),
    _letter_task(
        "mathqa",
        "Word problems with five options.",
        HubSource("allenai/math_qa", revision=PARQUET_COPY),
        0.2,
        "Apache-2.0",
    ),
    replace(
        _letter_task(
            "legal_mcq",
            "Law questions cut from MMLU: an open stand-in for the unpublished LegalMCQ.",
            MMLU_HUB,
            0.25,
            "MIT",
        ),
        overlaps={"mmlu": LAW_SUBJECTS},
    ),
    _letter_task(
        "casehold",
        "Which of five holdings a court's citation stands for.",
        HubSource("coastalcph/lex_glue", "case_hold"),
        0.2,
        "CC BY 4.0",
    ),
    _text_task(
        "arc_easy",
        "School science questions, the easier part.",
        HubSource("allenai/ai2_arc", "ARC-Easy"),
        0.25,
        "CC BY-SA 4.0",
    ),
    _text_task(
        "arc_challenge",
        "School science questions that retrieval and word statistics get wrong.",
        HubSource("allenai/ai2_arc", "ARC-Challenge"),
        0.25,
        "CC BY-SA 4.0",
    ),
    _text_task(
        "openbookqa",
        "Elementary science facts applied to new situations.",
        HubSource("allenai/openbookqa", "main"),
        0.25,
        "Apache-2.0",
    ),
    replace(
        _text_task(
            "boolq",
            "Yes-or-no questions of web searchers, asked without their passage.",
            HubSource("google/boolq", validation=None, test="validation"),
            0.5,
            "CC BY-SA 3.0",
        ),
        folder="boolq_noctx",
    ),
    _text_task(
        "piqa",
        "Which of two ways reaches an everyday physical goal.",
        HubSource("ybisk/piqa", revision=PARQUET_COPY, validation=None, test="validation"),
        0.5,
        "AFL-3.0",
    ),
    replace(
        _text_task(
            "hellaswag",
            "How a described scene of everyday life goes on.",
            HubSource("Rowan/hellaswag", revision=PARQUET_COPY, validation=None, test="validation"),
            0.25,
            "MIT",
        ),
        prompt="{question}",
        primary_metric="acc_norm",
    ),
    replace(
        _text_task(
            "winogrande",
            "Which of two names a sentence speaks of, told by how it goes on.",
            HubSource("allenai/winogrande", "winogrande_xl", validation=None, test="validation"),
            0.5,
            "CC BY",
        ),
        prompt="{question}",
    ),
    TaskSpec(
        "perplexity",
        "Any text: cross-entropy of every token.",
        "perplexity",
        "{question}",
        folder="perplexity",
    ),
    _pocket_task("pocket_general", "Known facts of the pocket world, asked.", "option_text"),
    _pocket_task("pocket_cloze", "Known facts of the pocket world, stated.", "option_text"),
    _pocket_task("pocket_med", "New facts of the pocket world.", "option_text"),
    _pocket_task("pocket_law", "Facts of the pocket world, half of them new.", "option_text"),
    _pocket_task("pocket_gsm", "Running totals of four or five steps, written out.", "number"),
    _pocket_task("pocket_math", "Sums and differences with four options.", "option_text"),
)
NAMED_TASKS: dict[str, TaskSpec] = {spec.name: spec for spec in _SPECS}


def overlapping_subjects(task: str, trained_on: Collection[str]) -> tuple[str, ...]:
    """Subjects of ``task`` to leave out because a training task holds the same questions."""
    subjects: list[str] = []
    for name in sorted(trained_on):
        spec = NAMED_TASKS.get(name)
        if spec is not None and name != task:
            subjects += spec.overlaps.get(task, ())
    return tuple(dict.fromkeys(subjects))
