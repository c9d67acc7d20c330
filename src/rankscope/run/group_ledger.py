"""Packs over the life of a study: cut once, kept in the ledger, changed by a shortage of memory.

How much memory is free differs from run to run, and packs decide how sums are rounded. So the first
run's packs are stored, and a run that continues trains the same ones.
"""

import dataclasses
from collections.abc import Sequence

from rankscope.run.groups import Pack
from rankscope.run.prepare import StudyInputs
from rankscope.store import Ledger
from rankscope.store.groups import StoredPacks
from rankscope.train.checkpoint import PackCheckpoint, PackState


def settled(ledger: Ledger, inputs: StudyInputs) -> StudyInputs:
    """The inputs with the packs that the study has; stored where it had none.

    Trials that the study gained are packed among themselves. A changed ``max_pack`` or
    ``memory_limit`` cuts all packs anew; what is trained stays as it is.
    """
    config, stored = inputs.config, ledger.packs()
    packs = list(inputs.packs)
    budgets: dict[str, int] = {}
    if stored is not None and (stored.max_pack, stored.memory_limit) == (
        config.max_pack,
        config.memory_limit,
    ):
        known = {trial.trial_id: trial for trial in inputs.trials}
        kept = [tuple(known[i] for i in ids if i in known) for ids in stored.packs]
        packs = [pack for pack in kept if pack]
        old = {trial.trial_id for pack in packs for trial in pack}
        new = [trial for trial in inputs.trials if trial.trial_id not in old]
        packs += inputs.packing.packs(new, config)
        budgets = stored.batch_tokens
    store(ledger, inputs, packs, budgets)
    return dataclasses.replace(inputs, packs=tuple(packs))


def store(
    ledger: Ledger, inputs: StudyInputs, packs: Sequence[Pack], budgets: dict[str, int]
) -> None:
    """Write down packs and budgets."""
    ids = tuple(tuple(trial.trial_id for trial in pack) for pack in packs)
    config = inputs.config
    ledger.put_packs(
        StoredPacks(
            max_pack=config.max_pack,
            memory_limit=config.memory_limit,
            packs=ids,
            batch_tokens=budgets,
        )
    )


def budget_of(ledger: Ledger, inputs: StudyInputs, pack: Pack) -> int:
    """Most tokens of one forward pass of a pack: the study's, or fewer after a shortage."""
    stored = ledger.packs()
    found = stored.batch_tokens if stored is not None else {}
    study = inputs.config.train.batch_tokens
    return min(study, *(found.get(trial.trial_id, study) for trial in pack))


def smaller_budget(inputs: StudyInputs, pack: Pack, budget: int) -> int | None:
    """Half of a pass's tokens, where passes are what takes the memory and can be smaller.

    The gradient is the same sum however it is cut, so this comes before a pack is halved.
    """
    train = inputs.config.train.model_copy(update={"batch_tokens": budget})
    counts = inputs.packing.counts_of(pack)
    takes = inputs.packing.memory(pack, train)
    tokens = takes.pass_tokens
    if tokens <= counts.longest or (len(pack) > 1 and takes.pass_bytes < takes.state_bytes):
        return None
    return max(counts.longest, tokens // 2)


def shrink(ledger: Ledger, inputs: StudyInputs, pack: Pack, budget: int) -> None:
    """Remember that a pack's passes hold at most ``budget`` tokens from here on."""
    stored = ledger.packs()
    budgets = {} if stored is None else dict(stored.batch_tokens)
    budgets.update((trial.trial_id, budget) for trial in pack)
    known = {trial.trial_id: trial for trial in inputs.trials}
    packs = inputs.packs
    if stored is not None:
        packs = tuple(tuple(known[i] for i in ids) for ids in stored.packs)
    store(ledger, inputs, packs, budgets)


def halves_of(pack: Pack) -> tuple[Pack, Pack]:
    """A pack of at least two cut in two, the first half never the smaller one."""
    middle = (len(pack) + 1) // 2
    return pack[:middle], pack[middle:]


def halve(ledger: Ledger, inputs: StudyInputs, pack: Pack) -> tuple[Pack, Pack]:
    """The halves of a pack, which take its place in the ledger."""
    halves = halves_of(pack)
    stored = ledger.packs()
    assert stored is not None
    known = {trial.trial_id: trial for trial in inputs.trials}
    gone = {trial.trial_id for trial in pack}
    packs: list[Pack] = []
    for ids in stored.packs:
        rest = tuple(known[i] for i in ids if i not in gone)
        packs += [rest] if rest else []
        packs += list(halves) if gone & set(ids) else []
    store(ledger, inputs, packs, stored.batch_tokens)
    return halves


def hand_down(whole: PackCheckpoint, pack: Pack, into: PackCheckpoint) -> None:
    """Give a part of a pack the state that the whole one had, if any.

    What it took in seconds goes with the tokens of the part's trials, of all that the state holds.
    """
    state = whole.load()
    if state is None:
        return
    ids = {trial.trial_id for trial in pack}
    tensors = {n: tensor for n, tensor in state.tensors.items() if n.split("/")[0] in ids}
    meta = {name: value for name, value in state.meta.items() if name in ids}
    tokens = {n: trial["num_tokens"] for n, trial in state.meta.items() if isinstance(trial, dict)}
    share = sum(tokens.get(i, 0) for i in ids) / max(1, sum(tokens.values()))
    seconds = state.meta["seconds"]
    assert isinstance(seconds, float | int)
    into.save(PackState(state.step, tensors, {**meta, "seconds": seconds * share}))
