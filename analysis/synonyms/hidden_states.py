"""The hidden states of a transformers causal LM at places and along candidate words, and the logits computed from them.

Shapes: B sequences, L positions (the text before the last place, then nodes), D width, V vocabulary, C places, N nodes,
R = C + N rows: the places, then the nodes of all their trees.

All candidates of many places go through the body beside the text itself, each attending to what stands before its place and to
its own earlier tokens: a tree attention mask, as in speculative decoding. Bodies that do not support such a mask read every
candidate in a sequence of its own instead, which is slower and gives the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from analysis.compare.arms import Diverged, check_positions
from analysis.compare.statistics import Bools, Ids
from common.errors import InputError

from .encode import Batch, Encoded, ancestors, batches_of, make_batch, pack_sequences, padded_groups

BATCH_POSITIONS = 8192
"""Positions that pass through the body together, padding included."""
CHECKED_PLACES = 4
"""Places of a sequence at which trees are compared with separate sequences."""
_TOLERANCE = 1e-3
"""Largest difference of the same logits computed in two ways, relative to their range: what rounding can cause."""
_REFUSALS = (ValueError, TypeError, RuntimeError, IndexError, AttributeError)
"""What bodies raise for a four-dimensional mask or for positions that they do not support."""


class _Given(nn.Module):
    """Stands in for a body: returns hidden states that are known already."""

    def __init__(self, output: ModelOutput) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Any, **__: Any) -> ModelOutput:
        return self.output


class Reader:
    """A model that reads the places of a study."""

    def __init__(self, model: Any, encoded: Encoded, label: str) -> None:
        """Check that the model fits the study. Raises :class:`InputError` naming ``label`` if not, Diverged among them."""
        self.model = model
        self.label = label
        self.encoded = encoded
        self._output: Callable[..., ModelOutput] = ModelOutput  # what this body returns: families differ in its fields
        embeddings = model.get_input_embeddings().weight.shape[0]
        if embeddings < len(encoded.vocabulary):
            raise InputError(
                f"{label}: the model has {embeddings} token embeddings and its tokenizer {len(encoded.vocabulary)} tokens; "
                "save the tokenizer that it was trained with beside it"
            )
        check_positions(model, label, encoded.longest)
        with torch.inference_mode():
            self._check_logits()
            self.takes_trees = self._supports_trees()

    def batches(self) -> Iterator[Batch]:
        """All places of the study."""
        return batches_of(self.encoded, BATCH_POSITIONS)

    def states(self, batch: Batch) -> Tensor:
        """(R, D): the input of the output embedding, at the batch's places and then at its nodes."""
        return self._in_trees(batch) if self.takes_trees else self._one_by_one(batch)

    def logits(self, h_RD: Tensor) -> Tensor:
        """(R, V): as the model itself computes them from these states, with all that follows its output embedding."""
        # A shallow copy with another body: the model itself is unchanged.
        outer = copy.copy(self.model)
        given = _Given(self._output(last_hidden_state=h_RD[None]))
        outer._modules = {**self.model._modules, self.model.base_model_prefix: given}
        ids_1R = torch.zeros(1, len(h_RD), dtype=torch.int64, device=h_RD.device)
        logits_RV: Tensor = outer(input_ids=ids_1R, use_cache=False).logits[0]
        return logits_RV[:, : len(self.encoded.vocabulary)]

    def body(self, ids_BL: Ids, **kwargs: Any) -> Tensor:
        """(B, L, D): the last hidden states of whole sequences."""
        x_BL = torch.from_numpy(ids_BL).to(self.model.device)
        output = self.model.base_model(input_ids=x_BL, use_cache=False, **kwargs)
        self._output = type(output)
        h_BLD: Tensor = output.last_hidden_state
        return h_BLD

    def _in_trees(self, batch: Batch) -> Tensor:
        encoded, study = self.encoded, self.encoded.study
        position_C = encoded.position_C[batch.place_C]
        texts = [int(encoded.position_C[high - 1]) + 1 for _, high in batch.sequences]
        sizes = [high - low for low, high in batch.sequences]
        bounds = np.searchsorted(batch.place_N, np.concatenate([[0], np.cumsum(sizes)]))
        length = max(text + int(nodes) for text, nodes in zip(texts, np.diff(bounds), strict=True))
        x_BL = np.zeros((len(texts), length), dtype=np.int64)
        position_BL = np.zeros_like(x_BL)
        sees_BLL = np.zeros((len(texts), length, length), dtype=bool)
        sees_BLL[:, :, 0] = True  # padding attends to something: attention to nothing would be NaN
        sequence_C = np.repeat(np.arange(len(texts)), sizes)
        index_N = np.empty(len(batch.token_N), dtype=np.int64)
        for b, text in enumerate(texts):
            nodes = slice(bounds[b], bounds[b + 1])
            rows = slice(text, text + int(bounds[b + 1] - bounds[b]))
            x_BL[b, :text] = encoded.passages[study.passage_C[batch.sequences[b][0]]][:text]
            x_BL[b, rows] = batch.token_N[nodes]
            position_BL[b, :text] = np.arange(text)
            position_BL[b, rows] = position_C[batch.place_N[nodes]] + batch.depth_N[nodes]
            sees_BLL[b, :text, :text] = np.tril(np.ones((text, text), dtype=bool))
            sees_BLL[b, rows, :text] = np.arange(text) <= position_C[batch.place_N[nodes]][:, None]
            sees_BLL[b, rows, rows] = ancestors(batch.parent_N[nodes] - batch.places - bounds[b])
            index_N[nodes] = np.arange(rows.start, rows.stop)
        h_BLD = self.body(
            x_BL,
            attention_mask=self._mask(sees_BLL),
            position_ids=torch.from_numpy(position_BL).to(self.model.device),
        )
        row_R = torch.from_numpy(np.concatenate([sequence_C, sequence_C[batch.place_N]]))
        index_R = torch.from_numpy(np.concatenate([position_C, index_N]))
        return h_BLD[row_R.to(h_BLD.device), index_R.to(h_BLD.device)]

    def _mask(self, sees_BLL: Bools) -> Tensor:
        """(B, 1, L, L): in the form the body's attention expects; eager attention adds it to the scores."""
        sees_B1LL = torch.from_numpy(sees_BLL[:, None]).to(self.model.device)
        if self.model.base_model.config._attn_implementation != "eager":
            return sees_B1LL
        zero_B1LL = torch.zeros(sees_B1LL.shape, dtype=self.model.dtype, device=self.model.device)
        return zero_B1LL.masked_fill_(~sees_B1LL, torch.finfo(self.model.dtype).min)

    def _one_by_one(self, batch: Batch) -> Tensor:
        """The same states from plain sequences: each text, and the text before a place followed by each path of its tree."""
        encoded, study = self.encoded, self.encoded.study
        sequences: list[tuple[Ids, Ids, Ids]] = []  # tokens, the batch's rows that are read there, and their positions
        row = 0
        for low, high in batch.sequences:
            position_C = encoded.position_C[low:high]
            text = encoded.passages[study.passage_C[low]][: position_C[-1] + 1]
            sequences.append((text, np.arange(row, row + high - low), position_C))
            row += high - low
        inner = set(batch.parent_N.tolist())
        for node in range(len(batch.token_N)):
            if batch.places + node in inner:
                continue  # part of another node's path
            place = batch.place_C[batch.place_N[node]]
            path = np.array(batch.path_to(node))
            text = encoded.passages[study.passage_C[place]][: encoded.position_C[place] + 1]
            positions = np.arange(len(text), len(text) + len(path))
            sequences.append((np.concatenate([text, batch.token_N[path]]), batch.places + path, positions))
        sequences.sort(key=lambda sequence: len(sequence[0]))
        h_RD: Tensor | None = None
        for group in padded_groups([len(tokens) for tokens, _, _ in sequences], BATCH_POSITIONS):
            chosen = [sequences[i] for i in group]
            x_BL = np.zeros((len(chosen), len(chosen[-1][0])), dtype=np.int64)
            for b, (tokens, _, _) in enumerate(chosen):
                x_BL[b, : len(tokens)] = tokens
            h_BLD = self.body(x_BL)  # padding comes after everything that is read
            if h_RD is None:
                h_RD = h_BLD.new_empty(batch.places + len(batch.token_N), h_BLD.shape[-1])
            for b, (_, rows, positions) in enumerate(chosen):
                h_RD[rows] = h_BLD[b, positions]
        assert h_RD is not None, "a batch has at least one place"
        return h_RD

    def _check_logits(self) -> None:
        """Check that logits computed from the body's states are the whole model's."""
        ids_1L = self.encoded.passages[0][None, :8]
        try:
            whole_LV = self.model(input_ids=torch.from_numpy(ids_1L).to(self.model.device)).logits[0]
            apart_LV = self.logits(self.body(ids_1L)[0])
        except _REFUSALS as error:
            raise InputError(f"{self.label}: cannot be read as a causal language model ({error})") from error
        if not bool(torch.isfinite(whole_LV[:, : apart_LV.shape[1]]).all()):
            raise Diverged(self.label)
        if not _close(whole_LV[:, : apart_LV.shape[1]], apart_LV):
            raise InputError(
                f"{self.label}: the model's logits are not a function of its last hidden state alone; it cannot be probed"
            )

    def _supports_trees(self) -> bool:
        """Whether trees and separate sequences agree, at the end of the fullest sequence and of the longest text.

        They do not where a four-dimensional mask overrides a sliding window, or where it is counted in columns.
        """
        sequences = pack_sequences(self.encoded)
        longest = max(sequences, key=lambda sequence: self.encoded.position_C[sequence[1] - 1])
        try:
            return all(self._trees_agree(low, high) for low, high, _ in {sequences[0], longest})
        except _REFUSALS:
            return False

    def _trees_agree(self, low: int, high: int) -> bool:
        """Whether the trees of a sequence's last places get the same logits among its trees as in separate sequences."""
        whole, last = (make_batch(self.encoded, [(first, high)]) for first in (low, max(low, high - CHECKED_PLACES)))
        row_R = [
            *range(whole.places - last.places, whole.places),
            *range(whole.places + len(whole.token_N) - len(last.token_N), whole.places + len(whole.token_N)),
        ]
        return _close(self.logits(self._in_trees(whole)[row_R]), self.logits(self._one_by_one(last)))


def _close(one_RV: Tensor, other_RV: Tensor) -> bool:
    if one_RV.shape != other_RV.shape:
        return False
    # Without what all tokens have in common, which can be large for distances and does not affect probabilities.
    one_RV, other_RV = (z_RV - z_RV.amax(-1, keepdim=True) for z_RV in (one_RV, other_RV))
    return bool((one_RV - other_RV).abs().max() <= _TOLERANCE * (1 + one_RV.abs().max()))
