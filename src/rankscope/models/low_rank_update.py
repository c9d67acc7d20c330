"""One matrix's weight update as low-rank factors, which can be scaled, truncated and measured.

Every change that makes an adapter smaller or weaker goes through this class. Its factors keep their
form, so the result is an ordinary LoRA or DoRA adapter again.

Shapes: m = out features, n = in features, r = rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor

from rankscope.models.lora import Adapter


def to_float64(tensor: Tensor) -> Tensor:
    """Return ``tensor`` detached, in float64; on the CPU if its device has no float64 (MPS)."""
    tensor = tensor.detach()
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


StoredFactors = tuple[Tensor, Tensor, Tensor | None]
"""Stored parts of one module: A (r, n), B (m, r) without the scaling, and DoRA's m (m,)."""


@dataclass(frozen=True, slots=True)
class LowRankUpdate:
    """dW = B A, or g (W0 + B A) - W0 with DoRA's gain. B includes the adapter's scaling."""

    A: Tensor  # (r, n) float64
    B: Tensor  # (m, r) float64
    gain: Tensor | None = None  # DoRA's m / |W0 + B A| per row, (m,) (2402.09353, eq. 5)
    weight: Tensor | None = None  # W0, (m, n) float64; required with a gain

    @classmethod
    def from_adapter(
        cls, adapter: Adapter, name: str, weight: Tensor | None = None
    ) -> "LowRankUpdate":
        """Return the update of module ``name``, on the device of ``weight`` (W0, required for
        DoRA)."""
        A, B = adapter.factors(name)
        if weight is not None:
            A, B, weight = A.to(weight.device), B.to(weight.device), to_float64(weight)
        A, B = to_float64(A), adapter.scaling * to_float64(B)
        if name not in adapter.magnitude:
            return cls(A, B)
        assert weight is not None  # DoRA's update depends on it
        magnitude = to_float64(adapter.magnitude[name]).to(weight.device)
        return cls(A, B, magnitude / (weight + B @ A).norm(dim=1), weight)

    @classmethod
    def from_dense(cls, delta: Tensor) -> "LowRankUpdate":
        """Wrap any update (m, n), of rank min(m, n); one factor is the identity."""
        delta = to_float64(delta)
        identity = torch.eye(min(delta.shape), dtype=delta.dtype, device=delta.device)
        return cls(delta, identity) if len(delta) == len(identity) else cls(identity, delta)

    @property
    def rank(self) -> int:
        return len(self.A)

    def dense(self) -> Tensor:
        """Return dW, (m, n)."""
        if self.gain is None:
            return self.B @ self.A
        assert self.weight is not None
        return self.gain[:, None] * (self.weight + self.B @ self.A) - self.weight

    def frobenius(self) -> float:
        """Return |dW|_F. At low rank and without a gain dW is not formed.

        |B A|_F^2 = tr[(B^T B)(A A^T)].
        """
        if self.gain is not None or self.rank > max(len(self.B), self.A.shape[1]):
            return float(torch.linalg.matrix_norm(self.dense()))
        # The trace of a product of symmetric matrices is the sum of their elementwise product.
        squared = float(((self.B.mT @ self.B) * (self.A @ self.A.mT)).sum())
        return sqrt(max(0.0, squared))

    def singular_values(self) -> Tensor:
        """Return the singular values of B A, largest first, (min(r, m, n),).

        They are those of the small R_B R_A^T, where B = Q_B R_B and A^T = Q_A R_A.
        """
        if self.gain is not None:
            raise ValueError("a DoRA update has full rank: decompose dense() instead")
        r_b = torch.linalg.qr(self.B, mode="r").R
        r_a = torch.linalg.qr(self.A.mT, mode="r").R
        values: Tensor = torch.linalg.svdvals(r_b @ r_a.mT)
        return values

    def scaled(self, factor: float) -> "LowRankUpdate":
        """Return ``factor`` dW, of the same rank.

        With a gain: W0 + f (g (W0 + B A) - W0) = g' (W0 + B' A),
        where g' = 1 + f (g - 1) and B' = f (g / g') B.
        """
        if self.gain is None:
            return replace(self, B=factor * self.B)
        gain = 1 + factor * (self.gain - 1)
        return replace(self, B=(self.gain / gain)[:, None] * (factor * self.B), gain=gain)

    def truncated(self, rank: int) -> "LowRankUpdate":
        """Return the nearest B A of rank at most ``rank`` (Eckart & Young 1936); a gain stays.

        The SVD of B A is that of R_B R_A^T multiplied by Q_B and Q_A. Each factor gets the square
        root of the singular values.
        """
        return self.truncations([rank])[0]

    def truncations(self, ranks: Sequence[int]) -> "list[LowRankUpdate]":
        """Return the nearest updates of several ranks, from one decomposition."""
        if self.rank <= min(ranks):
            return [self] * len(ranks)
        q_b, r_b = torch.linalg.qr(self.B)
        q_a, r_a = torch.linalg.qr(self.A.mT)
        u, s, vh = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
        root, most = s.sqrt(), max(r for r in ranks if r < self.rank)
        A = root[:most, None] * (vh[:most] @ q_a.mT)
        B = (q_b @ u[:, :most]) * root[:most]
        return [self if self.rank <= r else replace(self, A=A[:r], B=B[:, :r]) for r in ranks]

    def to_stored(self, scaling: float = 1.0) -> StoredFactors:
        """Return the factors in the form that an adapter with this ``scaling`` stores."""
        magnitude = None
        if self.gain is not None:
            assert self.weight is not None
            magnitude = self.gain * (self.weight + self.B @ self.A).norm(dim=1)
        return self.A, self.B / scaling, magnitude
