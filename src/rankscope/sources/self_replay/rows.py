"""Rows that the base writes itself, to be replayed: how they are sampled, and their stand-ins.

A row starts as any text does and goes on at temperature 1, so rows are draws from the distribution
that training is to keep (context-free generation, arXiv 2505.13811): the expected loss on them is
KL(base || tuned) over such texts up to a constant.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rankscope.data.encode import EncodedRow, EncodedRows, Encoder
from rankscope.errors import UserError
from rankscope.evaluate.scorers.scorer import ItemTokens
from rankscope.hashing import sha256_json


@dataclass(frozen=True)
class RowsToSample(EncodedRows):
    """Stands for rows until they are sampled from the base, each as long as it can become."""

    prompt: tuple[int, ...]
    stop_ids: frozenset[int]
    num_ends: int  # So many end tokens end a row
    seed: int

    @classmethod
    def of(cls, num_rows: int, encoder: Encoder, max_length: int, seed: int) -> "RowsToSample":
        prompt = tuple(encoder.opening_ids)
        if len(prompt) >= max_length:
            found = f"rows that begin with {len(prompt)} tokens, those of the chat template"
            do = "raise train.max_length, or use prompt_format: plain"
            raise UserError("self_replay", found, f"fewer than {max_length}", do)
        row = _sampled_row(prompt, [0] * (max_length - len(prompt)))
        return cls((row,) * num_rows, 0, 0, prompt, encoder.stop_ids, encoder.num_ends, seed)

    @property
    def max_length(self) -> int:
        return len(self.rows[0].input_ids)

    @property
    def sha256(self) -> str:
        """Hash of how they are sampled; with the base it determines them."""
        size = [len(self.rows), self.max_length, self.num_ends, self.seed]
        return sha256_json([self.prompt, sorted(self.stop_ids), size])

    def to_write(self) -> list[ItemTokens]:
        prompt = len(self.prompt)
        return [ItemTokens(prompt, 1, self.max_length - prompt)] * len(self.rows)

    def sampled(self, written: Sequence[Sequence[int]]) -> EncodedRows:
        """The rows that the base wrote: ``written`` are the tokens after the prompt. Raises
        UserError: it wrote nothing but end tokens."""
        if all(self.stop_ids.issuperset(ids) for ids in written):
            found = f"end tokens alone in all {len(written)} rows that the base wrote"
            do = "use 'replay', or another model.prompt_format"
            raise UserError("self_replay", found, "a base that begins a text by itself", do)
        return EncodedRows(tuple(_sampled_row(self.prompt, ids) for ids in written), 0, 0)


def _sampled_row(prompt: tuple[int, ...], written: Sequence[int]) -> EncodedRow:
    """A row with loss on everything that the base wrote, its end token too."""
    marks = (False,) * len(prompt) + (True,) * len(written)
    return EncodedRow((*prompt, *written), marks, truncated=False)
