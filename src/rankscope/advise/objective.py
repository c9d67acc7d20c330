"""What one training task is judged by."""

from rankscope.advise.arms import retention_tasks
from rankscope.config.objective import ObjectiveConfig
from rankscope.records import StudyRecords


def task_objective(study: StudyRecords, task: str) -> ObjectiveConfig:
    """The study's objective as it applies to arms trained on ``task``.

    A gain in accuracy and forgetting in nats cannot be added. If both have a weight and their units
    differ, forgetting gets weight 0 here; ``max_forgetting`` still excludes arms.
    """
    objective = study.config.objective
    units = {t.score_unit for t in retention_tasks(study, task)}
    units |= {t.score_unit for t in study.tasks if t.name == task}
    if objective.in_domain and objective.retention and len(units) > 1:
        return objective.model_copy(update={"retention": 0.0})
    return objective
