"""The evaluation engine alone, without a study."""

from rankscope.tools.evaluate.request import Asked
from rankscope.tools.evaluate.results_folder import Score
from rankscope.tools.evaluate.run import Scored, score

__all__ = ["Asked", "Score", "Scored", "score"]
