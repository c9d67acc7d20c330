"""The model of most races: SmolLM2-135M-Instruct, which ``evidence/fetch_model.py`` writes."""

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1] / "evidence"))

from fetch_model import fetched_model


def real_model() -> Path:
    """Its folder. Raises UserError: it was not fetched."""
    return fetched_model("smollm2-135m")
