"""The evaluation engine alone, without a study."""

from rankscope.scoring.asked import Asked
from rankscope.scoring.folder import Score
from rankscope.scoring.run import Scored, score

__all__ = ["Asked", "Score", "Scored", "score"]
