"""Which trials a study trains together, as its first run cut them."""

from rankscope.records import Record


class StoredGroups(Record):
    """Groups and what they were cut by; a later run keeps them, whatever memory it finds free."""

    max_group_size: int | None
    memory_limit: int | None
    groups: tuple[tuple[str, ...], ...]
    """Trial ids."""
    batch_tokens: dict[str, int] = {}
    """By trial id, most tokens of a forward pass, where the study's were too many."""
