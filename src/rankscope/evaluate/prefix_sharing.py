"""Groups of prompts with a common beginning, which is computed once.

Common beginnings are found on token ids: examples before each question of a subject, a system
prompt, a passage with several questions. Nothing needs to be declared.
"""

from collections.abc import Sequence

PASS_TOKENS = 256  # Cost of a group, in tokens: its prefix's pass and a last, partial one
MIN_LENGTH = 16  # Shorter beginnings of questions that open alike are not worth a cache


SharedPrefix = tuple[int, tuple[int, ...]]
"""Number of shared first tokens, and the indices of the prompts that share them. The number is 0 if
sharing would save nothing."""


class _Span:
    """Sorted prompts from index ``first`` on that share ``length`` tokens, and their best cuts."""

    def __init__(self, first: int, length: int = 0) -> None:
        self.first, self.length = first, length
        self.saved = 0  # Tokens saved by ``cuts``
        self.cuts: list[tuple[int, int, int]] = []  # (shared tokens, first, stop)

    def add(self, inner: "_Span") -> None:
        self.saved += inner.saved
        self.cuts += inner.cuts

    def close(self, stop: int) -> None:
        """Share one prefix over the whole span if that saves more than the cuts of its parts."""
        if self.length < MIN_LENGTH:
            return
        saved = (stop - self.first - 1) * self.length - PASS_TOKENS
        if saved > self.saved:
            self.saved, self.cuts = saved, [(self.length, self.first, stop)]


def find_shared_prefixes(
    prompts: Sequence[Sequence[int]], may_share: bool = True
) -> list[SharedPrefix]:
    """Divide prompts into groups so that the fewest tokens are computed.

    A group's prefix leaves at least one token of every prompt, because the last one gives the
    logits. Sorted prompts that share a prefix are neighbors, and such spans are nested or disjoint.
    So the best cuts of a span are either its own prefix or the best cuts of its parts.
    """
    order = sorted(range(len(prompts)), key=lambda i: list(prompts[i])) if may_share else []
    cuts: list[tuple[int, int, int]] = []
    open_spans: list[_Span] = []
    for place, index in enumerate(order):
        next_shared = 0
        if place + 1 < len(order):
            next_shared = _common_length(prompts[index], prompts[order[place + 1]])
        last = _Span(place)
        while open_spans and open_spans[-1].length > next_shared:
            span = open_spans.pop()
            span.add(last)
            span.close(place + 1)
            last = span
        if open_spans and open_spans[-1].length == next_shared:
            open_spans[-1].add(last)
        elif next_shared:
            open_spans.append(_Span(last.first, next_shared))
            open_spans[-1].add(last)
        else:
            cuts += last.cuts
    groups = [(length, tuple(sorted(order[first:stop]))) for length, first, stop in cuts]
    shared = {index for _, members in groups for index in members}
    alone = tuple(index for index in range(len(prompts)) if index not in shared)
    return [*groups, (0, alone)] if alone else groups


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the first tokens that both have in common, leaving at least one token of each."""
    longest = min(len(one), len(other)) - 1
    return next((i for i in range(longest) if one[i] != other[i]), longest)
