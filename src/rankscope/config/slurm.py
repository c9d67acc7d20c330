"""What a study asks of SLURM."""

from typing import Annotated

from pydantic import Field

from rankscope.config.section import ConfigSection

SLURM_WORD = r"^[A-Za-z0-9][A-Za-z0-9_.:,=/-]*$"


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
    options: list[Annotated[str, Field(pattern=r"^--[ -~]+$")]] = []
    """Further lines after ``#SBATCH``, such as ``--mem=32G``."""
