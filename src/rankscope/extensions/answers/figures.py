"""Answers of the base and of the recommended arm, side by side."""

from collections import Counter

import pandas as pd

from rankscope.extensions.answers.record import AnswersRecord, WrittenAnswer
from rankscope.formatting import count, join_names
from rankscope.report.charts.figure import Figure
from rankscope.report.figures import Section, in_section
from rankscope.report.study_view import StudyView

ANSWERS_SECTION = Section(
    "answers",
    2,
    "What the models wrote",
    "The first test items, whatever the models answered. The decision rests on scores alone.",
)


@in_section("answers", 10)
def draw_answers(view: StudyView, task: str) -> Figure | None:
    """Show answers of the base and of a trial of the answer's arm; None if no trial wrote any."""
    arm = view.focus(task)
    for trial in view.trials(arm) if arm else ():
        record = trial.analysis(AnswersRecord)
        if record is not None:
            label = f"{trial.spec.arm_label}, seed {trial.spec.seed}"
            return Figure(
                key=view.key("answers", task),
                title=f"Answers before and after, trained on {task}",
                finding=_finding(record, label),
                data=pd.DataFrame(),
                texts=[_titled(answer, label) for answer in record.answers],
            )
    return None


def _finding(record: AnswersRecord, label: str) -> str:
    answers, tasks = record.answers, Counter(answer.task for answer in record.answers)
    asked = join_names(f"{n} of {name}" for name, n in tasks.items())
    same = sum(answer.before == answer.after for answer in answers)
    ended = [sum(a.before_ended for a in answers), sum(a.after_ended for a in answers)]
    return (
        f"{count(len(answers), 'test item')} ({asked}), answered greedily by the base and by "
        f"{label}: {same} answered alike. Of its answers the base ended {ended[0]}, the trained "
        f"model {ended[1]}; the others were cut after {record.max_new_tokens} tokens."
    )


def _titled(answer: WrittenAnswer, label: str) -> dict[str, str]:
    texts = {
        f"prompt, {answer.task}": answer.prompt,
        "reference": answer.gold,
        "before: base": answer.before if answer.before_ended else f"{answer.before} [cut]",
        f"after: {label}": answer.after if answer.after_ended else f"{answer.after} [cut]",
    }
    return {title: text.strip() or "(nothing)" for title, text in texts.items()}
