"""Seeds, written as a list of them."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

MAX_SEED = 2**32 - 1  # Largest seed that both NumPy's and PyTorch's generators accept
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


def _seed_list(value: object) -> object:
    """Refuse a number above 0: it may be meant as the number of seeds."""
    if isinstance(value, int) and value > 0 and not isinstance(value, bool):
        raise ValueError(
            f"found {value}, expected a list: [{value}] is that seed alone, [0, 1, 2] are three"
        )
    return value if isinstance(value, list) else [value]


_SeedList = Annotated[list[Seed], Field(min_length=1)]
Seeds = Annotated[
    _SeedList, BeforeValidator(_seed_list, json_schema_input_type=_SeedList | Literal[0])
]
