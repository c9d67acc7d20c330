"""Versioned, typed results: everything that passes from one stage to the next.

Stages write records, the ledger stores them, and ``advise`` and ``report`` read only them. Scores
are shares of 1 (higher is better) unless a field says otherwise; times are seconds, sizes bytes,
losses nats per token. A record of any file here is imported from this package.
"""

from rankscope.records.advice import *
from rankscope.records.items import *
from rankscope.records.record import *
from rankscope.records.scores import *
from rankscope.records.study import *
from rankscope.records.trials import *
