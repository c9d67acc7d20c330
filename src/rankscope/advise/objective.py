"""What a study trades off, and what of it one training task can be judged by."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rankscope.advise.arms import retention_tasks
from rankscope.records import StudyRecords


@dataclass(frozen=True, slots=True)
class Objective:
    """What the study trades off: the ``objective`` section of the study file."""

    in_domain: float
    retention: float
    cost: float
    margin: float
    """Arms within it are equally good; in units of the score."""
    max_forgetting: float | None

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> "Objective":
        """Read the resolved study file; what an older one lacks gets the schema's default."""
        section = config.get("objective")
        given = section if isinstance(section, Mapping) else {}

        def number(key: str, default: float) -> float:
            value = given.get(key)
            return float(value) if isinstance(value, int | float) else default

        limit = given.get("max_forgetting")
        return cls(
            in_domain=number("in_domain", 1.0),
            retention=number("retention", 1.0),
            cost=number("cost", 0.0),
            margin=number("margin", 0.02),
            max_forgetting=float(limit) if isinstance(limit, int | float) else None,
        )

    @property
    def shares(self) -> tuple[float, float]:
        """Weights of score and retention over the larger of them: units of the score remain."""
        scale = max(self.in_domain, self.retention) or 1.0
        return self.in_domain / scale, self.retention / scale

    @property
    def formula(self) -> str:
        """The utility for people."""
        return f"{self.in_domain:g} x gain - {self.retention:g} x forgetting - {self.cost:g} x cost"


def objective_of(study: StudyRecords, task: str) -> Objective:
    """The study's objective, as far as it holds for arms trained on ``task``.

    A gain in accuracy and a loss in nats make no sum: where both have a weight and their units
    differ, forgetting loses its own. ``max_forgetting`` still rules arms out.
    """
    objective = Objective.from_config(study.config)
    units = {t.score_unit for t in retention_tasks(study, task)}
    units |= {t.score_unit for t in study.tasks if t.name == task}
    if objective.in_domain and objective.retention and len(units) > 1:
        return replace(objective, retention=0.0)
    return objective
