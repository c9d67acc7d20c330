"""The page of an inspection: one HTML file that opens offline."""

from rankscope.analyses.inspection import Inspection
from rankscope.report.analyzed_models import models_inspected
from rankscope.report.figures import SECTIONS, draw_section
from rankscope.report.head_values import precision_note
from rankscope.report.page import PageSection, render_page


def render_inspection(inspection: Inspection) -> str:
    sections = inspection_sections(inspection)
    return render_page(
        "inspection.html.j2",
        [figure for section in sections for figure in section.figures],
        [model.rank for model in inspection.tuned if model.rank is not None],
        inspection.provenance,
        inspection=inspection,
        sections=sections,
    )


def inspection_sections(inspection: Inspection) -> list[PageSection]:
    models = models_inspected(inspection)
    sections = []
    for key, (title, lead) in SECTIONS.items():
        figures = tuple(draw_section(key, "models", models))
        if key == "heads" and models.with_heads:
            lead = f"{lead} {precision_note(models.with_heads[0][1].dtype)}"
        if figures:
            sections.append(PageSection(key, title, lead, figures))
    return sections
