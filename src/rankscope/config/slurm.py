"""What a study asks of SLURM."""

from math import inf
from typing import Annotated

from pydantic import Field, field_validator

from rankscope.config.section import ConfigSection, PlainText

SLURM_WORD = r"^[A-Za-z0-9][A-Za-z0-9_.:,=/-]*$"
WARNING_MINUTES = 2
"""How long before its limit a task is asked to write a checkpoint and end; SLURM may ask up to a
minute earlier."""


class SlurmConfig(ConfigSection):
    """What ``--executor slurm`` asks of SLURM for each unit; no result depends on it."""

    partition: Annotated[str, Field(pattern=SLURM_WORD)] | None = None
    """By default the site's; as are the others."""
    account: Annotated[str, Field(pattern=SLURM_WORD)] | None = None
    """Whom the time is charged to."""
    time: Annotated[str, Field(pattern=SLURM_WORD)] | None = None
    """Limit such as ``4:00:00``; a unit that needs longer continues in another turn."""
    gres: Annotated[str, Field(pattern=SLURM_WORD)] | None = None
    """Such as ``gpu:1``."""
    cpus: int | None = Field(None, ge=1)
    """Processors of a unit, and threads of its worker; by default 4 for each of its devices, or as
    many as ``OMP_NUM_THREADS`` says."""
    mem: Annotated[str, Field(pattern=SLURM_WORD)] | None = None
    """Memory of a unit, such as ``64G``; by default what is planned, ``site`` asks for none."""
    options: list[Annotated[str, Field(pattern=r"^--[ -~]+$")]] = []
    """Further lines after ``#SBATCH``, such as ``--constraint=a100``."""
    setup: list[PlainText] = []
    """Lines of the batch script before the worker starts, such as ``module load cuda``."""
    python: PlainText | None = None
    """The interpreter on the nodes; by default the driver's own."""
    wrap: PlainText | None = None
    """Before the worker's command, such as ``srun`` or ``apptainer exec --nv image.sif``."""

    @field_validator("time")
    @classmethod
    def _is_longer_than_the_warning(cls, time: str | None) -> str | None:
        least = WARNING_MINUTES + 1
        if time is not None and _time_limit_minutes(time) <= least:
            raise ValueError(
                f"found {time!r}, expected more than {least} minutes: a unit is interrupted up "
                f"to {least} minutes before the limit, and would never come to train"
            )
        return time


def _time_limit_minutes(time: str) -> float:
    """Of SLURM's forms M, M:S, H:M:S, D-H, D-H:M and D-H:M:S; infinity for a word, and for 0."""
    days, _, rest = time.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdecimal() for part in (days or "0", *parts)) or len(parts) > 3:
        return inf
    numbers = [int(part) for part in parts]
    if days or len(numbers) == 3:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return (int(days or 0) * 24 + hours) * 60 + minutes + seconds / 60 or inf
