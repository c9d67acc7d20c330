"""The one way in which a study backs off from a shortage of memory."""

from collections.abc import Callable

import torch

from rankscope.device import is_out_of_memory, out_of_memory_message
from rankscope.run.context import RunContext
from rankscope.run.groups import Group, halves_of


def with_oom_backoff(
    context: RunContext,
    group: Group,
    work: Callable[[Group], None],
    purpose: str,
    shrink: Callable[[Group], bool] = lambda group: False,
    split: Callable[[Group], tuple[Group, Group]] = halves_of,
) -> dict[str, str]:
    """Run ``work`` on a group. If memory runs out, try again in smaller passes, then in halves.

    Args:
        context: the run; afterwards no adapter is attached to its base.
        group: trials to work on together.
        work: may raise an out-of-memory error.
        purpose: for the note to the user, such as ``train``.
        shrink: make the group's passes smaller; False if they cannot be.
        split: cut a group of at least two trials in two.

    Returns:
        Trial id -> error message, for each trial that does not fit even alone.
    """
    if not group:
        return {}
    shortage = attempt(context, group, work)
    if not shortage:
        return {}
    context.reporter.finish(shortage)
    if context.base.device.type == "cuda":
        torch.cuda.empty_cache()
    if shrink(group):
        context.reporter.note("not enough memory: forward passes get fewer tokens")
        return with_oom_backoff(context, group, work, purpose, shrink, split)
    if len(group) == 1:
        return {group[0].trial_id: shortage}
    context.reporter.note(
        f"not enough memory to {purpose} {len(group)} trials together: the group is split in two"
    )
    first, second = split(group)
    return with_oom_backoff(context, first, work, purpose, shrink, split) | with_oom_backoff(
        context, second, work, purpose, shrink, split
    )


def attempt(context: RunContext, group: Group, work: Callable[[Group], None]) -> str:
    """Run ``work`` once; the message of an out-of-memory error, or ''.

    Once this returns, the error's traceback and with it the tensors of its frames are gone.
    """
    try:
        work(group)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return out_of_memory_message(error)
    finally:
        context.base.multi_lora.clear()
    return ""
