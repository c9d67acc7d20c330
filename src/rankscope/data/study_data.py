"""The data of a study: its tasks are read, split and mixed, and its training rows encoded."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain, product, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankscope.config.section import short_repr
from rankscope.config.study import StudyConfig
from rankscope.config.task import TaskConfig
from rankscope.data.encode import EncodedRows, Encoder, LabelMode, encode_rows
from rankscope.data.items import Item
from rankscope.data.splits import find_contamination_between_tasks, first_of_order
from rankscope.data.task_source import no_training_rows
from rankscope.data.tasks import LoadedTask, load_task, with_contamination
from rankscope.errors import UserError
from rankscope.evaluate.scorers import get_scorer
from rankscope.formatting import count, join_names
from rankscope.hashing import canonical_json, sha256_json
from rankscope.records import TrialSpec
from rankscope.train.objectives.objective import Objective, objective_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class StudyData:
    encoder: Encoder
    tasks: Mapping[str, LoadedTask]  # By name, every task that is trained on or evaluated
    rows: Mapping[str, EncodedRows]  # By training task
    fewer_rows: Mapping[str, Mapping[int, EncodedRows]]
    """Rows of arms that train on fewer rows, by training task and number."""
    replay_rows: Mapping[str, EncodedRows]  # By task whose rows some arm replays, or source's
    notes: tuple[str, ...]  # Facts for readers of the results, one sentence each

    def seen_by(self, trial: TrialSpec) -> "StudyData":
        """Return the data that a trial is scored on: items after its prompt, if it has one."""
        prompt, own, tasks = trial.prompt, self.encoder, dict(self.tasks)
        if prompt is None:
            return self
        if prompt.num_fewshot is not None:
            tasks[trial.task] = tasks[trial.task].shown_after(prompt.examples)
        if prompt.system:
            own = type(own)(own.tokenizer, own.prompt_format, own.max_length, prompt.system)
        return replace(self, encoder=own, tasks=tasks)

    def rows_of(self, trial: TrialSpec) -> EncodedRows:
        """Return the rows that a trial trains on."""
        return (
            self.rows[trial.task] if trial.rows is None else self.fewer_rows[trial.task][trial.rows]
        )


def prepare_data(
    config: StudyConfig, tokenizer: "PreTrainedTokenizerBase", whole: bool = True
) -> StudyData:
    """Read, check, split and encode the rows of a study.

    Args:
        whole: False encodes stand-ins and skips the search for contamination.
    """
    kind = Encoder if whole else _CachingEncoder
    max_length = config.train.max_length if config.arms else None  # items are scored whole
    encoder = kind(tokenizer, config.model.prompt_format, max_length)
    tasks = _load_tasks(config)
    for name in (task.name for task in config.tasks if not tasks[task.name].train):
        raise no_training_rows(name, tasks[name].source)
    replayed = _load_replayed_tasks(config, tasks)
    about_rows = list(_row_notes(config, tasks))
    contamination_notes: list[str] = []
    if whole:
        tasks, contamination_notes = _mark_contamination(config, tasks, replayed)
    else:
        tasks = {name: _stand_ins(task) for name, task in tasks.items()}
        replayed = {name: _stand_ins(task) for name, task in replayed.items()}
    labels = config.train.labels
    objectives = [objective_of(text) for text in config.objectives()]
    for objective, name in product(objectives, (task.name for task in config.tasks)):
        objective.check_task(tasks[name], config.train)
    encode = partial(_encode_rows, objectives, encoder, config.train.labels)
    rows = {t.name: encode(tasks[t.name], tasks[t.name].train) for t in config.tasks}
    replay_rows = {n: encode_rows(encoder, task.train, labels) for n, task in replayed.items()}
    notes = [
        *(note for task in tasks.values() for note in task.notes),
        *_replay_notes(config),
        *contamination_notes,
        *about_rows,
        *(
            f"{name}: {encoded.dropped} training rows dropped, {encoded.truncated} completions "
            f"cut at max_length = {config.train.max_length} tokens"
            for name, encoded in {**replay_rows, **rows}.items()
            if encoded.dropped or encoded.truncated
        ),
        *_unknown_token_notes(rows, encoder.unknown_id),
    ]
    fewer_rows = {t.name: _fewer_rows(config, encode, tasks[t.name]) for t in config.tasks}
    return StudyData(encoder, tasks, rows, fewer_rows, replay_rows, tuple(notes))


def _encode_rows(
    objectives: Sequence[Objective],
    encoder: Encoder,
    labels: LabelMode,
    task: LoadedTask,
    items: Sequence[Item],
) -> EncodedRows:
    """Encode training rows for all the objectives."""
    scorers = {scorer for objective in objectives for scorer in objective.scorers(task.spec)}
    judges = sorted(
        canonical_json([s.name.partition(":")[0], s.encoder_settings(encoder)]) for s in scorers
    )
    rows = encode_rows(
        encoder,
        items,
        labels,
        pairs=any(objective.needs_pairs for objective in objectives),
        spec=task.spec,
        max_new_tokens=max((objective.max_new_tokens for objective in objectives), default=0),
    )
    return replace(rows, judges=tuple(judges))


def _fewer_rows(
    config: StudyConfig,
    encode: Callable[[LoadedTask, Sequence[Item]], EncodedRows],
    task: LoadedTask,
) -> dict[int, EncodedRows]:
    """Encode fewer rows, by every number that some arm trains on.

    They are the rows that ``max_train_rows`` would leave.
    """
    name, counts = task.spec.name, {n for arm in config.arms for n in arm.rows or () if n != "all"}
    if above := [n for n in sorted(counts) if n > len(task.train)]:
        found, rule = f"{above[-1]} of task {name!r}", f"at most {len(task.train)}"
        raise UserError("rows of an arm", found, rule, "give more rows, or write 'all'")
    return {
        n: encode(task, first_of_order(task.train, n, config.data_seed, name, "train"))
        for n in counts
    }


# --- reading ------------------------------------------------------------------------------------


def _load_tasks(config: StudyConfig) -> dict[str, LoadedTask]:
    """Load every task that is trained on or evaluated, by name."""
    described = config.evaluation_tasks()
    tasks = {}
    for task in described.values():
        if task.mixture:
            parts = [described.get(name, TaskConfig(name=name)) for name in task.mixture]
            loaded = [_load_plain_task(config, part) for part in parts]
            tasks[task.name] = _mix_tasks(task, loaded, config.data_seed)
        else:
            tasks[task.name] = _load_plain_task(config, task)
    return tasks


def _load_plain_task(config: StudyConfig, task: TaskConfig) -> LoadedTask:
    return load_task(
        task,
        Path(config.data_dir) if config.data_dir is not None else None,
        config.data_seed,
        config.evaluate.max_items,
        # A study without arms chooses nothing, so only the split itself needs validation items.
        keep_test_whole=not config.arms and task not in config.evaluate.retention,
        trained_on=[*config.trained_tasks(), *config.replayed_tasks()],
    )


def _load_replayed_tasks(
    config: StudyConfig, tasks: Mapping[str, LoadedTask]
) -> dict[str, LoadedTask]:
    replayed = {
        name: tasks[name] if name in tasks else _load_plain_task(config, TaskConfig(name=name))
        for name in config.replayed_tasks()
    }
    for name, task in replayed.items():
        if not task.train:
            do = "replay another task, or give this one a file of them ('train:')"
            raise UserError(f"replay of {name!r}", "no training rows", "rows to replay", do)
    return replayed


# --- mixtures -----------------------------------------------------------------------------------


def _mix_tasks(config: TaskConfig, parts: Sequence[LoadedTask], data_seed: int) -> LoadedTask:
    """Mix tasks into one training task with all rows of its parts, scored by the mean of all
    items."""
    for part in parts:
        if not part.train:
            found = f"{part.spec.name!r} in its mixture, which has no training rows"
            raise UserError(f"task {config.name!r}", found, "tasks with training rows", "remove it")
    if any(get_scorer(part.spec.scorer).compares_with_base for part in parts):
        found, rule = "tasks scored against the base in a mixture", "each as a task of its own"
        raise UserError(f"task {config.name!r}", found, rule)
    if len({part.spec.score_unit for part in parts}) > 1:
        found = "tasks scored by accuracy and by log probability, which have no common mean"
        raise UserError(f"task {config.name!r}", found, "tasks of one kind", "mix only these")
    train = tuple(chain.from_iterable(part.train for part in parts))
    train = first_of_order(train, config.max_train_rows, data_seed, config.name, "train")
    test = _interleave([part.test for part in parts])
    names = ", ".join(part.spec.name for part in parts)
    chances = [(part.spec.chance, len(part.test)) for part in parts]
    known = [chance * items for chance, items in chances if chance is not None]
    return LoadedTask(
        spec=replace(
            parts[0].spec,
            name=config.name,
            description=f"Rows and items of {names} together.",
            chance=sum(known) / len(test) if len(known) == len(parts) else None,
            hub=None,
            folder=None,
        ),
        train=train,
        validation=_interleave([part.validation for part in parts]),
        test=test,
        sha256=sha256_json([[part.spec.name, part.sha256] for part in parts] + [len(train)]),
        dropped=sum(part.dropped for part in parts),
        source=f"{names} together",
        notes=(f"{config.name}: {len(train)} training rows of {names} together",),
        row_shape=", ".join(dict.fromkeys(part.row_shape for part in parts)),
        parts=tuple(parts),
    )


def _interleave(splits: Sequence[Sequence[Item]]) -> tuple[Item, ...]:
    """Take one item of each part in turn until all are used."""
    return tuple(item for turn in zip_longest(*splits) for item in turn if item is not None)


# --- checks -------------------------------------------------------------------------------------


def _mark_contamination(
    config: StudyConfig, tasks: Mapping[str, LoadedTask], replayed: Mapping[str, LoadedTask]
) -> tuple[dict[str, LoadedTask], list[str]]:
    """Mark all test items that are training rows of the study.

    Training rows of a task that the study does not train on contaminate nothing. They do count if
    the study trains no model, because a given model may have seen them.

    Returns:
        The tasks with the ids of such items, and notes.
    """
    described = config.evaluation_tasks()
    own = {
        n: task if described[n].source else with_contamination(task) for n, task in tasks.items()
    }
    trained = {**replayed, **{task.name: tasks[task.name] for task in config.tasks}}
    notes, between_tasks = find_contamination_between_tasks(
        {name: task.train for name, task in trained.items()},
        {name: task.test for name, task in tasks.items()},
    )
    marked = {}
    for name, task in own.items():
        may_be_seen = name in trained or not config.arms
        within = task.contaminated_ids if may_be_seen else frozenset[str]()
        marked[name] = replace(task, contaminated_ids=within | between_tasks.get(name, set()))
    return marked, notes


MAX_UNKNOWN_SHARE = 0.01  # Share of a task's training tokens that needs no note
ROWS_PER_LABEL = 5  # Rows of an answer, on average, from which answers are labels


# --- notes --------------------------------------------------------------------------------------


def _replay_notes(config: StudyConfig) -> Iterator[str]:
    """Yield a note for each replayed task whose scores also count as retention or transfer."""
    retention = {task.name for task in config.evaluate.retention}
    cross_domain = {task.name for task in config.evaluate.cross_domain}
    for name in config.replayed_tasks():
        replayed = f"{name}: some arms replay training rows of this task, so their"
        if name in retention:
            yield f"{replayed} forgetting on it does not show that of a task never trained on"
        if name in cross_domain:
            yield f"{replayed} gain on it is not transfer: they are trained on it"


def _unknown_token_notes(rows: Mapping[str, EncodedRows], unknown_id: int | None) -> Iterator[str]:
    """Yield one sentence for each task with many tokens that the tokenizer does not know.

    Its rows are in a language or script that the tokenizer lacks, or the model is the pocket model.
    """
    for name, encoded in rows.items():
        unknown = sum(row.input_ids.count(unknown_id) for row in encoded.rows)
        if unknown > MAX_UNKNOWN_SHARE * encoded.num_tokens:
            yield (
                f"{name}: {unknown / encoded.num_tokens:.0%} of the tokens to train on are unknown "
                "to this tokenizer, and all the same to the model"
            )


def _row_notes(config: StudyConfig, tasks: Mapping[str, LoadedTask]) -> Iterator[str]:
    """Yield notes about copies among the scored items, and about rows whose answers repeat."""
    labeled = [*config.trained_tasks(), *(task.name for task in config.evaluate.retention)]
    for name, task in tasks.items():
        for split, items in (("validation", task.validation), ("test", task.test)):
            distinct = {(item.prompt or item.question, item.gold) for item in items}
            if copies := len(items) - len(distinct):
                of = f"{copies:,} of {len(items):,} {split} items"
                yield f"{name}: {of} are copies of another; copies count as one item"
        if name in labeled:
            train = task.train if name in config.trained_tasks() else ()
            yield from _label_notes(name, [*train, *task.validation, *task.test])


def _label_notes(name: str, rows: Sequence[Item]) -> Iterator[str]:
    """Yield notes about rows whose answers repeat.

    They name an answer that most rows have, prompts with several answers, and answers that differ
    only in case or spaces.
    """
    golds = Counter(row.gold for row in rows)
    if len(rows) < ROWS_PER_LABEL * len(golds):
        return
    (most, num), *_ = golds.most_common(1)
    if 2 * num > len(rows):
        answer = f"the answer {short_repr(most)}, so always giving it is right as often"
        yield f"{name}: {num / len(rows):.0%} of {len(rows):,} rows have {answer}"
    by_prompt, by_spelling = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for row in rows:
        by_prompt[row.prompt].add(row.gold)
        by_spelling[row.gold.strip().casefold()].add(row.gold)
    by_prompt.pop("", None)  # plain texts
    if several := [prompt for prompt, found in by_prompt.items() if len(found) > 1]:
        example = f"{short_repr(several[0])}: {_listed(by_prompt[several[0]])}"
        prompts = count(len(several), "prompt")
        yield f"{name}: rows contradict one another on {prompts}, such as {example}"
    if alike := [_listed(found) for found in by_spelling.values() if len(found) > 1]:
        yield f"{name}: only case or spaces tell these answers apart: {'; '.join(alike)}"


def _listed(answers: Collection[str]) -> str:
    return join_names(map(short_repr, sorted(answers)))


# --- stand-ins ----------------------------------------------------------------------------------

# A plan needs the lengths of rows but not their tokens. Rows sorted by their number of characters
# are cut into spans, and one tokenized row of each span stands for all of it. The number of tokens
# of 512 rows in place of 14,042 was then off by less than 2 % on every data set that was tried,
# because rows of equally many characters have about equally many tokens.
SPANS = 512  # Most rows of one split that are tokenized


class _CachingEncoder(Encoder):
    """Tokenizes an item once, however many items it stands for."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for name in ("prompt_ids", "answer_ids", "training_row", "pair"):
            setattr(self, name, cache(getattr(self, name)))


def _stand_ins(task: LoadedTask) -> LoadedTask:
    """Replace the items of a task by those that stand for them, in the same order.

    The evaluated items of a mixture stay: each is looked up among its parts'.
    """
    train = _by_length(task.train)
    if task.parts:
        return replace(task, train=train)
    return replace(
        task, train=train, validation=_by_length(task.validation), test=_by_length(task.test)
    )


def _by_length(items: Sequence[Item], spans: int = SPANS) -> tuple[Item, ...]:
    """Replace each item by the middle one of its span, by length; the longest item stays."""
    order = sorted(range(len(items)), key=lambda index: _num_characters(items[index]))
    chosen = list(items)
    for span in range(spans):
        members = order[len(order) * span // spans : len(order) * (span + 1) // spans]
        for index in members:
            chosen[index] = items[members[len(members) // 2]]
    if order:
        chosen[order[-1]] = items[order[-1]]
    return tuple(chosen)


def _num_characters(item: Item) -> int:
    """Count the characters of everything that becomes tokens."""
    turns = sum(len(message.content) for message in item.messages)
    examples = sum(len(text) for pair in item.fewshot for text in pair)
    return len(item.prompt) + len(item.completion) + sum(map(len, item.choices)) + turns + examples
