"""Versioned, typed results: everything that passes from one stage to the next.

Stages write records, the ledger stores them, and ``advise`` and ``report`` read only them. Scores
are shares of 1 (higher is better) unless a field says otherwise; times are seconds, sizes bytes,
losses nats per token.
"""

from rankscope.records.advice import (
    FEWEST_SEEDS,
    AdviceKind,
    AdviceMessage,
    AnswerRow,
    ArmComparison,
    ArmSummary,
    CheckName,
    CheckStatus,
    Claim,
    Confidence,
    Decision,
    ForgettingScale,
    Recommendation,
    RowRole,
    ScaleName,
    SubjectChange,
    TaskAdvice,
    TrustCheck,
)
from rankscope.records.comparison import (
    ComparedCell,
    ComparedStudy,
    Facet,
    StudyAnswer,
    StudyComparison,
    StudyPair,
)
from rankscope.records.estimate import Estimate
from rankscope.records.heads import HeadAblation, HeadChange, HeadRole, HeadsRecord, LayerHeads
from rankscope.records.inspection import (
    AdapterChange,
    Inspection,
    MatrixChange,
    NormGrowth,
    TunedModel,
)
from rankscope.records.items import (
    ITEM_SCHEMA,
    ItemResult,
    read_items,
    results_of,
    write_items,
)
from rankscope.records.mitigation import (
    MitigationComparison,
    ScaledPoint,
    ScalingCurve,
    TaskMitigation,
)
from rankscope.records.prediction import (
    Backtest,
    BacktestTask,
    Predictor,
    PredictorFeatures,
    PredictorScore,
    RankPrediction,
    RankScore,
    TaskPrediction,
)
from rankscope.records.record import (
    BASE,
    FAILED,
    SCHEMA_VERSION,
    WAITING,
    Record,
    Role,
    Split,
    Status,
)
from rankscope.records.scores import (
    CurvePoint,
    EvalKey,
    EvalRecord,
    ItemScores,
    WithoutContamination,
)
from rankscope.records.spectra import MatrixSpectrum, SpectraRecord
from rankscope.records.study import (
    ModelRecord,
    Provenance,
    StudyRecords,
    TaskRecord,
    TrialRecords,
    trained_parts,
)
from rankscope.records.trials import LossPoint, PenaltyPoint, TrainRecord, TrialSpec
from rankscope.records.variants import Variant, VariantKind, trial_of, variant_of
