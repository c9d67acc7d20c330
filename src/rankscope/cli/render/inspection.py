"""What ``inspect`` prints."""

from rich.console import Group, RenderableType

from rankscope.analyses import all_analyses
from rankscope.cli.terminal import note_lines
from rankscope.records import StudyRecords


def inspection_tables(study: StudyRecords) -> RenderableType:
    """Tables and notes of each analysis of the given models."""
    parts = [analysis.terminal(study) for analysis in all_analyses()]
    forced = [
        f"{t.spec.arm_label}: records another base; compared with this one because of --force"
        for t in study.trials
        if t.spec.given and t.spec.given.other_base is not None
    ]
    notes = [*forced, *(note for _, notes in parts for note in notes)]
    return Group(*(table for tables, _ in parts for table in tables), *note_lines(notes))
