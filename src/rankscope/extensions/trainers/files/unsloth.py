"""Unsloth: a script or notebook that calls FastLanguageModel and TRL's trainer."""

from collections.abc import Mapping
from typing import Any

from rankscope.extensions.trainers.files.trl import TrlFile


class UnslothFile(TrlFile):
    def labels(self, row: Mapping[str, Any]) -> str:
        """Return the tokens that carry loss; ``train_on_responses_only`` restricts them to the
        answers."""
        calls = {key.partition(".")[0] for key in self.document.spans}
        return "completion" if "train_on_responses_only" in calls else super().labels(row)
