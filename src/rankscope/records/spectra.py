"""What the weights became."""

import math

from rankscope.records.record import Record


class MatrixSpectrum(Record):
    """What one weight matrix became: science.md section 1."""

    name: str
    """Module path in the base, such as ``model.layers.3.self_attn.q_proj``."""
    layer: int | None
    module: str
    """Last part of the name, such as ``q_proj``."""
    shape: tuple[int, int]
    """(out, in)."""
    frobenius: float
    """|dW|_F."""
    relative: float
    """|dW|_F / |W0|_F."""
    singular_values: tuple[float, ...]
    """Leading singular values of dW, largest first, at most 128."""
    effective_rank: float
    """exp of the entropy of sigma / sum(sigma)."""
    stable_rank: float
    """|dW|_F^2 / sigma_1^2."""
    top_k: int
    """Vectors compared by the similarities below."""
    similarity_index: tuple[float, float]
    """Index-matched mean |C_ii| of left and right vectors."""
    similarity_max: tuple[float, float]
    """Mean over tuned vectors of max |C_ij|, left and right."""
    similarity_subspace: tuple[float, float]
    """|C|_F^2 / k, left and right."""
    chance_subspace: tuple[float, float]
    """Expected subspace similarity of unrelated vectors, k/d, left and right."""
    intruders: int
    """Leading left vectors of W whose largest |cosine| to a base vector is below epsilon."""
    intruder_energy: float
    """Their share of the squared singular values of the leading vectors examined."""


class SpectraRecord(Record):
    """Spectra of one trial."""

    trial_id: str
    intruder_k: int
    intruder_epsilon: float
    matrices: tuple[MatrixSpectrum, ...]
    seconds: float

    @property
    def frobenius(self) -> float:
        """|dW|_F over all analyzed matrices together."""
        return math.sqrt(sum(m.frobenius**2 for m in self.matrices))

    @property
    def intruders(self) -> int:
        """Summed over matrices."""
        return sum(m.intruders for m in self.matrices)
