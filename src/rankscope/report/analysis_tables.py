"""Results of analyses, as one set of tables."""

from collections.abc import Sequence

import pandas as pd

from rankscope.analyses import all_analyses
from rankscope.records import AnalysisRecord

TableRow = dict[str, object]
INTEGERS = ("rank", "seed", "layer", "head")  # Columns that stay integers beside unknown cells


def analysis_tables(
    found: Sequence[tuple[TableRow, AnalysisRecord]],
) -> dict[str, pd.DataFrame]:
    """Return the tables of all analyses by name, if they have rows.

    Args:
        found: records, each with the columns that tell its model from others.
    """
    tables: dict[str, pd.DataFrame] = {}
    for analysis in all_analyses():
        kind = analysis.record_type()
        if kind is not None:
            tables |= analysis.tables([pair for pair in found if isinstance(pair[1], kind)])
    return {
        name: table.astype({column: "Int64" for column in INTEGERS if column in table})
        for name, table in tables.items()
        if len(table)
    }
