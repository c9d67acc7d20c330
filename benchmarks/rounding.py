"""How far two float computations of one thing may be apart: the tolerances of races and tests.

A sum of n rounded terms is off by at most c sqrt(n) u of the sum of the terms' magnitudes, with u
half the dtype's epsilon, except with probability 2 exp(-c^2 / 2) (N. J. Higham, T. Mary, *A new
approach to probabilistic rounding error analysis*, SIAM J. Sci. Comput. 41, 2019, theorem 2.4).
Processors and libraries add in different orders, so two results may be apart by twice that.
"""

import math

import torch
from transformers import PretrainedConfig

CERTAINTY = 5
"""c: a single sum is outside with a probability below 1e-5."""


def rounding(num_terms: int, dtype: torch.dtype = torch.float32) -> float:
    """Largest difference of two sums of the same terms, over the sum of the terms' magnitudes."""
    return CERTAINTY * math.sqrt(num_terms) * torch.finfo(dtype).eps


def terms_of_pass(config: PretrainedConfig) -> int:
    """Terms of all sums that a number passes through, forward through a decoder and back.

    Per layer the inner products of query, output, gate and down projection; then the output layer.
    """
    layer = 3 * config.hidden_size + config.intermediate_size
    return 2 * (config.num_hidden_layers * layer + config.hidden_size)
