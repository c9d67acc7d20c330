"""The pocket world: a small, seeded universe of facts and sums for the pocket model.

Every row that the embedded study trains on or evaluates comes from here, and so do the facts and
sums of the pocket model's pretraining (`scripts/pretrain_pocket.py`). Nothing is stored: the world
is regenerated, identically, from one seed in a fraction of a second, with the standard library
alone.

Three kinds of entities have facts. A *person* has four attributes, all known from pretraining (the
retention set). A *drug* has two: the drugs of `pocket_med` are new to the model, but a few other
drugs appear in pretraining so that the words for the effects of drugs are not new. A legal *case*
has two: half of the cases of `pocket_law` appear in pretraining, as statements only. Sums are
running totals ("Balin has 7 gains 5 loses 3"): pretraining shows one to three steps, `pocket_gsm`
asks for four or five.

The splits of a task are disjoint. For facts they are disjoint by entity: a validation item and a
test item never concern the same person, drug or case. A test item of `pocket_med` or `pocket_law`
asks for a fact that the train split teaches, in a phrasing that the train split never uses; an
evaluated sum is a problem that appears nowhere else.
"""

import copy
import itertools
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any, TypeVar

_T = TypeVar("_T")
PocketRow = dict[str, Any]


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WORLD_SEED = 0
POCKET_TASKS = words("pocket_general pocket_cloze pocket_med pocket_law pocket_gsm pocket_math")
POCKET_SPLITS = ("train", "validation", "test")
SPLIT_SEEDS = {"train": "train", "validation": "selection", "test": "report"}
"""Part of the seed of a split's rows: another text would draw other rows."""

# A name is two of these 64 words, so one word does not identify its bearer: a fact belongs to the
# pair, and new names consist of words that the model knows from other names.
_NAME_STARTS = words("Ba Ce Do Fi Gu Ha Je Ko Li Mu Na Pe Ro Si Tu Va")
_NAME_ENDS = words("lin ros mek tar")
NAME_WORDS = tuple(start + end for start in _NAME_STARTS for end in _NAME_ENDS)

# kind of entity -> attribute -> its possible values
# fmt: off
ATTRIBUTES: dict[str, dict[str, tuple[str, ...]]] = {
    "person": {
        "metal": words("iron copper silver gold tin lead zinc nickel cobalt chrome steel bronze "
                       "brass titanium platinum mercury"),
        "animal": words("fox wolf bear otter heron eagle horse goat hare lynx seal crow toad moth "
                        "trout mole"),
        "fruit": words("apple pear plum fig cherry lemon lime mango peach quince olive grape melon "
                       "banana orange papaya"),
        "trade": words("baker mason tailor weaver smith potter miller sailor farmer hunter painter "
                       "cooper tanner glazier scribe brewer"),
    },
    "drug": {
        "target": words("fever cough gout asthma eczema migraine anemia malaria scurvy angina "
                        "colic croup mumps rabies tetanus ulcer"),
        "risk": words("nausea rash thirst tremor vertigo insomnia fatigue cramps bleeding swelling "
                      "itching dizziness chills sweating numbness fainting"),
    },
    "case": {
        "charge": words("theft fraud arson libel perjury bribery treason assault forgery piracy "
                        "smuggling burglary trespass slander usury poaching"),
        "outcome": words("acquittal fine prison probation exile pardon parole appeal mistrial "
                         "settlement damages injunction dismissal caution curfew service"),
    },
}
# fmt: on

# Two ways to state a fact and three to ask for it; the value completes each.
STATEMENTS = ("the {attribute} of {kind} {name} is", "{kind} {name} has the {attribute}")
TRAINED_QUESTIONS = ("{attribute} of {kind} {name} ?", "{kind} {name} : {attribute} ?")
EVALUATED_QUESTION = "which {attribute} has {kind} {name} ?"

NUM_SUMS_TRAIN = 2000
NUM_SUMS_EVALUATED = 200
HARD_STEPS = (4, 5)
LARGEST_NUMBER = 99


@dataclass(frozen=True, slots=True)
class Fact:
    """`kind` `name` has the `attribute` `value`."""

    kind: str
    name: str
    attribute: str
    value: str

    def render(self, template: str) -> str:
        return template.format(kind=self.kind, name=self.name, attribute=self.attribute)


Entities = tuple[tuple[Fact, ...], ...]  # One tuple of facts per entity, in a seeded order
ENTITIES = {
    "persons": ("person", 200),
    "drugs_new": ("drug", 128),
    "drugs_untaught": ("drug", 32),  # Control group: in no split and not in the corpus
    "drugs_old": ("drug", 60),
    "cases": ("case", 160),
}
"""Kind and number of entities, grouped by what the model knows of them before fine-tuning."""


def rng_of(*purpose: object) -> Random:
    """An independent generator per purpose: an additional draw never changes the others."""
    return Random(f"{WORLD_SEED}/" + "/".join(str(part) for part in purpose))


@lru_cache(maxsize=1)
def pocket_world() -> dict[str, Entities]:
    """The facts of the world, by group; the same object in every call."""
    rng = rng_of("facts")
    pairs = [f"{first} {last}" for first, last in itertools.permutations(NAME_WORDS, 2)]
    names = iter(rng.sample(pairs, sum(count for _, count in ENTITIES.values())))
    return {
        group: tuple(
            tuple(
                Fact(kind, name, attribute, rng.choice(values))
                for attribute, values in ATTRIBUTES[kind].items()
            )
            for name in itertools.islice(names, count)
        )
        for group, (kind, count) in ENTITIES.items()
    }


# --- facts as rows ------------------------------------------------------------------------------


def _four_choices(right: str, candidates: tuple[str, ...] | list[str], rng: Random) -> PocketRow:
    """Four choices in random order, as the fields `choices` and `answer` of a row."""
    choices = [right, *rng.sample([other for other in candidates if other != right], 3)]
    rng.shuffle(choices)
    return {"choices": choices, "answer": choices.index(right)}


def _fact_row(fact: Fact, template: str, rng: Random) -> PocketRow:
    return {
        "question": fact.render(template),
        **_four_choices(fact.value, ATTRIBUTES[fact.kind][fact.attribute], rng),
        "subject": fact.attribute,
    }


def _facts_of_split(entities: Entities, split: str, *, taught: bool) -> list[Fact]:
    """The facts of one split.

    Fine-tuning teaches the facts of a `taught` family: training covers all entities, and the
    evaluated splits divide them. Otherwise (retention) half of the entities are for training (for
    replay), and the evaluated splits divide the rest.
    """
    evaluated = entities if taught else entities[len(entities) // 2 :]
    middle = len(evaluated) // 2
    chosen = {
        "train": entities if taught else entities[: len(entities) // 2],
        "validation": evaluated[:middle],
        "test": evaluated[middle:],
    }[split]
    return list(itertools.chain.from_iterable(chosen))


def _fact_rows(task: str, split: str) -> list[PocketRow]:
    groups = {"pocket_med": "drugs_new", "pocket_law": "cases"}
    entities = pocket_world()[groups.get(task, "persons")]
    if task == "pocket_cloze":
        templates: tuple[str, ...] = STATEMENTS[:1]
    elif split == "train":
        templates = TRAINED_QUESTIONS
    else:
        templates = (EVALUATED_QUESTION,)
    rng = rng_of(task, SPLIT_SEEDS[split])
    facts = _facts_of_split(entities, split, taught=task in groups)
    rows = [_fact_row(fact, template, rng) for fact in facts for template in templates]
    rng.shuffle(rows)
    return rows


# --- sums as rows -------------------------------------------------------------------------------


def running_total(num_steps: int, rng: Random) -> PocketRow:
    """A story of gains and losses; the answer lists every total up to the last."""
    total = rng.randint(5, 40)
    story = [f"{rng.choice(NAME_WORDS)} has {total}"]
    totals = []
    for _ in range(num_steps):
        amount = rng.randint(1, 9)
        gains = total + amount <= LARGEST_NUMBER and (amount > total or rng.random() < 0.5)
        total += amount if gains else -amount
        story.append(f"{'gains' if gains else 'loses'} {amount}")
        totals.append(str(total))
    return {
        "question": " ".join([*story, "total ?"]),
        "answer": f"{', '.join(totals)} #### {total}",
    }


def _split_problems(problems: list[_T]) -> dict[str, list[_T]]:
    return {
        "validation": problems[:NUM_SUMS_EVALUATED],
        "test": problems[NUM_SUMS_EVALUATED : 2 * NUM_SUMS_EVALUATED],
        "train": problems[2 * NUM_SUMS_EVALUATED :],
    }


@lru_cache(maxsize=1)
def _hard_sums() -> dict[str, list[PocketRow]]:
    """Distinct four- and five-step problems, the evaluated ones drawn first."""
    rng = rng_of("hard sums")
    distinct: dict[str, PocketRow] = {}
    while len(distinct) < 2 * NUM_SUMS_EVALUATED + NUM_SUMS_TRAIN:
        row = running_total(rng.choice(HARD_STEPS), rng)
        distinct[row["question"]] = row
    rows = list(distinct.values())
    return _split_problems(rows)


@lru_cache(maxsize=1)
def math_problems() -> dict[str, list[tuple[int, str, int]]]:
    """Every a + b and a - b with b up to 29 and a result in 0..99, split once."""
    problems = [
        (a, sign, b)
        for a in range(10, LARGEST_NUMBER + 1)
        for b in range(2, 30)
        for sign in "+-"
        if 0 <= (a + b if sign == "+" else a - b) <= LARGEST_NUMBER
    ]
    rng_of("math problems").shuffle(problems)
    return _split_problems(problems)


def math_row(problem: tuple[int, str, int], rng: Random) -> PocketRow:
    a, sign, b = problem
    right = a + b if sign == "+" else a - b
    # Near misses: a digit off by one or two, and the forgotten carry.
    near = [right + off for off in (-11, -10, -9, -2, -1, 1, 2, 9, 10, 11)]
    candidates = [str(number) for number in near if 0 <= number <= LARGEST_NUMBER]
    return {
        "question": f"what is {a} {sign} {b} ?",
        **_four_choices(str(right), candidates, rng),
        "subject": "addition" if sign == "+" else "subtraction",
    }


# --- rows by task -------------------------------------------------------------------------------


@lru_cache(maxsize=len(POCKET_TASKS) * len(POCKET_SPLITS))
def _rows(task: str, split: str) -> list[PocketRow]:
    if task == "pocket_gsm":
        return _hard_sums()[split]
    if task == "pocket_math":
        rng = rng_of(task, SPLIT_SEEDS[split])
        return [math_row(problem, rng) for problem in math_problems()[split][:NUM_SUMS_TRAIN]]
    return _fact_rows(task, split)


def pocket_rows(task: str, split: str) -> list[PocketRow]:
    """The rows of one split of one task, always the same and in the same order.

    Multiple choice rows are `{"question": str, "choices": [4 str], "answer": 0-based int,
    "subject": str}`; rows of `pocket_gsm` are `{"question": str, "answer": str}` where the answer
    ends in `#### <number>`. The caller may change the list and the rows.
    """
    return copy.deepcopy(_rows(task, split))
