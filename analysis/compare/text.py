"""The text that models are compared on: the token store of a run, with its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import InputError, note
from data.batches import window_count, windows
from data.corpora import DataConfig
from data.store import TokenStore

from .arms import Arm

Ids = npt.NDArray[np.int64]
_COUNTED = 1 << 24
"""Tokens of the training text that are counted at once."""


@dataclass(frozen=True)
class RunText:
    """The data of a run: its settings, its token store, and the tokenizer that the tokens were made with."""

    data: DataConfig
    store: TokenStore
    tokenizer: Any

    def windows(self, count: int, *, seed: int) -> tuple[Ids, Ids]:
        """Inputs and targets (B, T) from the validation split: at most ``count`` windows of the training length, in order.

        They do not overlap, and are drawn with ``seed``. Raises :class:`InputError` if the split is shorter than one.
        """
        ids, length = self.store.validation.ids, self.data.sequence_length
        there = window_count(ids, length)
        if there < 1:
            raise InputError(
                f"the validation split has {len(ids)} tokens, fewer than data.sequence_length + 1 = {length + 1}; hold out "
                "more (data.validation_fraction)"
            )
        if there < count:
            note(f"{count} windows were requested; the validation split has {there} of {length} tokens")
        chosen_B = np.sort(np.random.default_rng(seed).permutation(there)[:count])
        tokens_BT = windows(ids, length, chosen_B).astype(np.int64)
        return tokens_BT[:, :-1], tokens_BT[:, 1:]

    def training_counts(self) -> Ids:
        """How often each token (V,) occurs in the training text."""
        ids, count_V = self.store.train.ids, np.zeros(self.store.vocab_size, np.int64)
        for start in range(0, len(ids), _COUNTED):
            count_V += np.bincount(ids[start : start + _COUNTED], minlength=len(count_V))
        return count_V


def open_text(arms: Sequence[Arm]) -> RunText:
    """The text of the first run among ``arms``. Raises :class:`InputError` if none of them is a run."""
    from configs.load import load_recorded
    from data.store import open_store

    runs = [member.run for arm in arms for member in arm.members if member.run]
    if not runs:
        raise InputError(
            "none of the models belongs to a run, whose config.yaml names the text; give a run as one of them"
        )
    # Every run's configuration is loaded, because that registers the heads of its plugins.
    data, *_ = [load_recorded(run).data for run in runs]
    store = open_store(data, progress=True)
    return RunText(data, store, store.load_tokenizer())
