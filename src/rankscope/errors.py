"""Errors that a user can act on, each with the exit code of the command line.

A message names the place, what was found, what was expected and what to do. Any other exception is
a bug in Rankscope (exit code 1).
"""


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
