"""Back-off of a study from a shortage of memory; there is no other."""

import gc
from collections.abc import Callable
from typing import Literal

from rankscope.device import live_memory_bytes, release_freed_memory
from rankscope.errors import AGAIN, OutOfMemory, is_out_of_memory, out_of_memory_message
from rankscope.formatting import byte_size
from rankscope.records import TrialSpec
from rankscope.run.context import RunContext
from rankscope.run.groups import Group
from rankscope.run.workers.attempts import IS_SMALLER

Purpose = Literal["train", "score", "analyze"]
LEAK_BYTES = 256 * 2**20
LEAK_SHARE = 0.1
"""Memory that earlier groups kept is to blame above the larger of these limits: bytes, and a share
of the memory that groups are planned with. Libraries loaded late and a torn heap stay below."""


def with_oom_backoff(
    context: RunContext,
    purpose: Purpose,
    group: Group,
    work: Callable[[Group], None],
    give_up: Callable[[TrialSpec, str], None],
    split: Callable[[Group], tuple[Group, Group]],
) -> None:
    """Run ``work`` on a group. If memory runs out, try again in smaller passes, then in halves.

    Args:
        context: the run; afterwards no adapter is attached to its base.
        purpose: kind of work, for the note to the user; only passes of training can be smaller.
        group: trials to work on together.
        work: may raise an out-of-memory error.
        give_up: takes a trial that does not fit even alone, and why.
        split: cuts a group of at least two trials in two, for good: the process may not live to
            finish a half, and the next one is not to begin with the whole.

    Raises:
        OutOfMemory: earlier groups of this process did not return theirs.
    """
    if not group:
        return
    has_tried = not context.killed_for_memory
    shortage = attempt(context, group, work)
    if shortage:
        context.reporter.finish(shortage)
        context.svd_cache.clear()
    release_freed_memory()  # training, scoring and analysis need blocks of other sizes
    if not shortage:
        return
    _check_returned(context)
    shards = context.base.shards
    before = _plan_of(context) if shards.size > 1 else None
    again: tuple[Group, ...] = (group,)
    if purpose == "train" and context.group_ledger.shrink(group):
        context.reporter.note("not enough memory: forward passes get fewer tokens")
    elif len(group) == 1:
        give_up(group[0], shortage)
        again = ()
    else:
        context.reporter.note(
            f"not enough memory to {purpose} {len(group)} trials together: the group is "
            "split in two"
        )
        again = split(group)
    if has_tried and shards.size > 1:  # the others are in the middle of a pass
        is_smaller = _plan_of(context) != before
        shards.break_off(f"{shortage}; {IS_SMALLER}" if is_smaller else shortage)
    for part in again:
        with_oom_backoff(context, purpose, part, work, give_up, split)


def _plan_of(context: RunContext) -> object:
    """Return the state that the next process would find."""
    return context.ledger.groups(), context.ledger.statuses()


def attempt(context: RunContext, group: Group, work: Callable[[Group], None]) -> str:
    """Run ``work`` once; return the message of an out-of-memory error, or ''.

    After the return, the error's traceback is gone, and with it the tensors of its frames.
    """
    if context.killed_for_memory:
        context.killed_for_memory = False
        return "out of memory: the system killed the processes that tried it"
    try:
        work(group)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return out_of_memory_message(error)
    finally:
        context.base.multi_lora.clear()
    return ""


def _check_returned(context: RunContext) -> None:
    """Raise OutOfMemory if earlier groups kept memory, so that no trial takes the blame.

    A new process has kept nothing yet, so the same command gets at least one group further.
    """
    gc.collect()
    kept = live_memory_bytes(context.base.device) - context.memory_before_groups
    limit = max(LEAK_BYTES, LEAK_SHARE * context.study.grouping.room_bytes)
    if context.groups_worked_on > 1 and kept > limit:
        raise OutOfMemory(
            f"{context.ledger.out}: out of memory",
            f"{byte_size(kept)} that earlier groups did not return",
            f"less than {byte_size(limit)}",
            f"end this process, {AGAIN}",
        )
