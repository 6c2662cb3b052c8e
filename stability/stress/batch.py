"""Stresses of the batch's tokens. Shapes: R rows of this rank, T positions, W = T + 1 tokens of a window, V vocabulary."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from common.registry import without_effect
from data.batches import IGNORED

from .base import STRESSES, Setup, Stress, When

Tokens = npt.NDArray[np.int64]
_COUNTED = 1 << 24
"""Tokens of the training text that are counted at once."""


@STRESSES.register("corrupt_sequences")
class CorruptSequences(Stress):
    """Corrupts the first sequences of a batch: random, repeated, shuffled or rare tokens, or targets that do not count."""

    counts = "batches"

    @dataclass(frozen=True, kw_only=True)
    class Options(When):
        sequences: Annotated[int, Field(ge=1, le=1 << 20)]
        """Number of sequences, counted over all ranks."""
        pattern: Literal["random", "repeated", "ignored", "shuffled", "repeated_span", "rare"]
        """random: drawn uniformly from the vocabulary; repeated: a few random tokens over and over; ignored: the text stays, but
        none of its tokens is a target; shuffled: the sequence's own tokens in random order; repeated_span: at a random place
        ``period`` tokens of the sequence follow one another ``repeats`` times, the rest stays; rare: drawn uniformly from the
        rarest tokens."""
        period: Annotated[int, Field(ge=1, le=1 << 20)] = 4
        """Length of what is repeated, in tokens."""
        repeats: Annotated[int, Field(ge=1, le=1 << 20)] = 32
        """How often a span of the text follows itself."""
        rare_share: Annotated[float, Field(gt=0, le=1)] = 0.01
        """The rarest tokens are those that together make up at most this share of the training text (at least one token)."""

    @classmethod
    def problems(cls, options: Any, setup: Setup) -> Iterator[tuple[str, str]]:
        """Also more sequences than the batch has, a batch without any target, and a span that does not fit."""
        o = options
        yield from super().problems(o, setup)
        if o.sequences > setup.batch_size:
            yield "sequences", f"{o.sequences} is more than train.batch_size={setup.batch_size}"
        if o.pattern == "ignored" and o.sequences == setup.batch_size:
            yield "sequences", f"all {o.sequences} sequences of a batch without targets leave no loss"
        window = setup.sequence_length + 1
        if o.pattern == "repeated_span" and o.period * o.repeats > window:
            text = (
                f"{o.repeats} times {o.period} tokens do not fit into the {window} of a sequence with its last target"
            )
            yield "repeats", f"{text}; at most {window // o.period}" if o.period <= window else text
        used = {"period": ("repeated", "repeated_span"), "repeats": ("repeated_span",), "rare_share": ("rare",)}
        yield from without_effect(o, "pattern", used)

    def batch(self, batch: int, x_RT: Tensor, y_RT: Tensor, *, first_row: int) -> None:
        rows = min(self.options.sequences - first_row, len(x_RT))
        if self.options.pattern == "ignored":
            y_RT[: max(0, rows)] = IGNORED
            return
        for row in range(rows):
            window_W = torch.from_numpy(self._window(self.random(batch, first_row + row), window(x_RT[row], y_RT[row])))
            x_RT[row], y_RT[row] = window_W[:-1], window_W[1:]

    def _window(self, generator: np.random.Generator, text_W: Tokens) -> Tokens:
        """What replaces the window ``text_W``."""
        o, length = self.options, len(text_W)
        if o.pattern == "shuffled":
            return generator.permutation(text_W)
        if o.pattern == "repeated_span":
            start = int(generator.integers(length - o.period * o.repeats + 1))
            text_W[start : start + o.period * o.repeats] = np.tile(text_W[start : start + o.period], o.repeats)
            return text_W
        if o.pattern == "rare":
            return generator.choice(self._rarest, size=length)
        drawn = generator.integers(self.place.vocab_size, size=length if o.pattern == "random" else o.period)
        return np.resize(drawn, length)

    @cached_property
    def _rarest(self) -> Tokens:
        """The ids of the rarest tokens that occur in the training text."""
        ids, count_V = self.place.store.train.ids, np.zeros(self.place.vocab_size, np.int64)
        for start in range(0, len(ids), _COUNTED):
            count_V += np.bincount(ids[start : start + _COUNTED], minlength=len(count_V))
        order_V = np.argsort(count_V, kind="stable")
        order = order_V[count_V[order_V] > 0]
        share = np.cumsum(count_V[order]) / len(ids)
        return order[: max(1, int(np.searchsorted(share, self.options.rare_share, side="right")))]

    def describe(self, step: int, batch: int) -> str:
        o = self.options
        what = {
            "ignored": "without targets",
            "shuffled": "with their tokens in random order",
            "repeated_span": f"with {o.period} of their tokens repeated {o.repeats} times",
        }.get(o.pattern, f"replaced by {o.pattern} tokens")
        return f"{o.sequences} sequences of batch {batch} {what}"


@STRESSES.register("label_noise")
class LabelNoise(Stress):
    """Replaces a share of the targets by random tokens; the inputs stay."""

    counts = "batches"

    @dataclass(frozen=True, kw_only=True)
    class Options(When):
        share: Annotated[float, Field(gt=0, le=1)]
        """Probability of each target to be replaced by a token drawn uniformly from the vocabulary (it may be the same one)."""

    def batch(self, batch: int, x_RT: Tensor, y_RT: Tensor, *, first_row: int) -> None:
        for row, y_T in enumerate(y_RT):
            generator = self.random(batch, first_row + row)
            noisy_T = torch.from_numpy(generator.random(len(y_T)) < self.options.share) & (y_T != IGNORED)
            drawn_T = torch.from_numpy(generator.integers(self.place.vocab_size, size=len(y_T)))
            y_T.copy_(torch.where(noisy_T, drawn_T, y_T))

    def describe(self, step: int, batch: int) -> str:
        return f"{self.options.share:.3g} of the targets of batch {batch} replaced by random tokens"


def window(x_T: Tensor, y_T: Tensor) -> Tokens:
    """The text (W,) of a sequence: its inputs and its last target. Where another stress ignores that, the last input again."""
    last = y_T[-1] if y_T[-1] != IGNORED else x_T[-1]
    return torch.cat([x_T, last[None]]).numpy()
