"""What every stored result shares, and the words that results are told apart by."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1
BASE = "base"
"""Stands in place of a trial id for the untuned base model."""

Split = Literal["validation", "test"]
Role = Literal["in_domain", "cross_domain", "retention"]
Status = Literal["planned", "trained", "done", "diverged", "oom", "failed"]
FAILED: frozenset[Status] = frozenset({"diverged", "oom", "failed"})


class Record(BaseModel):
    """Base of every stored result: frozen, no unknown fields, with its version."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: int = SCHEMA_VERSION
