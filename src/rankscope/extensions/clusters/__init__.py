"""Units of a study as jobs of SLURM, or as tasks of a Ray cluster."""

from rankscope.extensions.clusters.ray import RaySettings
from rankscope.extensions.clusters.slurm import SlurmSettings

__all__ = ["RaySettings", "SlurmSettings"]
