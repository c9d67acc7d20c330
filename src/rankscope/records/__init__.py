"""Versioned, typed results: the only thing that passes from one stage to the next.

A stage writes records, the ledger stores them, and ``advise`` and ``report`` read nothing else.
Scores are shares of 1 (higher is better) unless a field says otherwise; times are seconds, sizes
bytes, losses nats per token.
"""

from rankscope.records.advice import (
    ArmSummary,
    Decision,
    Estimate,
    Reason,
    Recommendation,
    TaskAdvice,
)
from rankscope.records.items import ITEM_SCHEMA, ItemResult, read_items, write_items
from rankscope.records.record import BASE, FAILED, SCHEMA_VERSION, Record, Role, Split, Status
from rankscope.records.scores import CurvePoint, EvalKey, EvalRecord, ItemScores, WithoutLeaks
from rankscope.records.spectra import MatrixSpectrum, SpectraRecord
from rankscope.records.study import ModelRecord, Provenance, StudyRecords, TaskRecord, TrialRecords
from rankscope.records.trials import LossPoint, TrainRecord, TrialSpec

__all__ = [
    "BASE",
    "FAILED",
    "ITEM_SCHEMA",
    "SCHEMA_VERSION",
    "ArmSummary",
    "CurvePoint",
    "Decision",
    "Estimate",
    "EvalKey",
    "EvalRecord",
    "ItemResult",
    "ItemScores",
    "LossPoint",
    "MatrixSpectrum",
    "ModelRecord",
    "Provenance",
    "Reason",
    "Recommendation",
    "Record",
    "Role",
    "SpectraRecord",
    "Split",
    "Status",
    "StudyRecords",
    "TaskAdvice",
    "TaskRecord",
    "TrainRecord",
    "TrialRecords",
    "TrialSpec",
    "WithoutLeaks",
    "read_items",
    "write_items",
]
