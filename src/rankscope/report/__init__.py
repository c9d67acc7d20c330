"""Pages, model cards and tables: writers of a study's records and its recommendation.

Other rooms use the modules of ``__all__``. A figure is a file of ``figures`` or of an extension.
"""

__all__ = ["analysis_tables", "analyzed_models", "answer", "charts", "columns", "figures"]
__all__ += ["model_card", "page", "page_limit", "study_page", "study_view", "style"]
__all__ += ["table_formats", "tables", "use_it"]
