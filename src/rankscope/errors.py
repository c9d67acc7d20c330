"""Errors that a user can act on, each with the exit code of the command line.

A message names the place, what was found, what was expected and what to do. Any other exception is
a bug in Rankscope (exit code 1).
"""

import difflib
from collections.abc import Iterable


class RankscopeError(Exception):
    """Base of every error Rankscope raises on purpose."""

    exit_code = 1


class UserError(RankscopeError):
    """A study file, data row, model folder or argument cannot be used as it is (exit code 2)."""

    exit_code = 2


class IntegrityError(RankscopeError):
    """A stored artifact is not what was written: missing, altered or not finite (exit code 4)."""

    exit_code = 4


class NotFiniteError(IntegrityError):
    """A model's log-probabilities are not finite, so it cannot be scored (exit code 4)."""


class StudyLocked(UserError):
    """Another process is running this study (exit code 2)."""


class DiskFull(RankscopeError):
    """No space to write; the previous state is kept (exit code 3)."""

    exit_code = 3


class Interrupted(RankscopeError):
    """A stop was requested; the same command continues (exit code 130)."""

    exit_code = 130


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """``; did you mean 'rank'?`` if a known word is similar, else empty."""
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.55)
    return f"; did you mean {close[0]!r}?" if close else ""
