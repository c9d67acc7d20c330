"""``rankscope eval``: score a model and its adapters on tasks, without a study."""

from rankscope.tools.evaluate.request import EvalRequest
from rankscope.tools.evaluate.results_folder import Score
from rankscope.tools.evaluate.run import EvalResult, score

__all__ = ["EvalRequest", "EvalResult", "Score", "score"]
