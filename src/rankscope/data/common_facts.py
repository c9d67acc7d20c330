"""Facts that most models know, as questions with four options: what fine-tuning should not cost.

The facts are common knowledge, collected for this package (Apache-2.0), by question in
``common_facts.json``. Small models answer well above chance.
"""

import json
import random
from importlib import resources

from rankscope.data.sources import SplitRows, numbered


def read_common_facts() -> tuple[SplitRows, str]:
    """Questions on facts that most models know, with three wrong answers to the same question."""
    path = resources.files("rankscope.data") / "common_facts.json"
    rows = []
    for question, answers in json.loads(path.read_text(encoding="utf-8")).items():
        for subject, answer in answers.items():
            draw = random.Random(question + subject)
            wrong = draw.sample(sorted(set(answers.values()) - {answer}), 3)
            choices = draw.sample([answer, *wrong], 4)
            asked = {"question": question.format(subject), "choices": choices, "answer": answer}
            rows.append({**asked, "subject": question.replace("{}", "...")})
    return {"test": numbered(rows, "common_facts, test")}, "common facts (built in)"
