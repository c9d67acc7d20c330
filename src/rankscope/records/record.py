"""What every stored result shares, and the words that results are told apart by."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

from rankscope.models.methods import get_method

SCHEMA_VERSION = 1
BASE = "base"
"""Stands in place of a trial id for the untuned base model."""

Split = Literal["validation", "test"]
Role = Literal["in_domain", "cross_domain", "retention"]
MethodName = Annotated[str, AfterValidator(lambda name: get_method(name).name)]
Status = Literal["planned", "trained", "done", "diverged", "oom", "failed"]
FAILED: frozenset[Status] = frozenset({"diverged", "oom", "failed"})


class Record(BaseModel):
    """Base of every stored result: frozen, no unknown fields, with its version."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: int = SCHEMA_VERSION
