"""The hidden states of a transformers causal LM at places and along candidate words, and the logits that follow from them.

Shapes: B sequences, L positions (the text before the last place, then nodes), D width, V vocabulary, C places, N nodes,
R = C + N rows: the places, then the nodes of all their trees.

All candidates of many places go through the body beside the text itself, each seeing what stands before its place and its own
earlier tokens: a mask in the form of a tree, as in speculative decoding. Bodies that take no such mask read every candidate in a
sequence of its own instead, which is slower and says the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from analysis.compare.arms import Diverged, check_positions
from analysis.words.vocabulary import Ids, Vocabulary
from common.errors import InputError

from .batching import Lot, ancestors, lot_of, path_to, plan_lots, plan_sequences
from .encode import Encoded

LOT_POSITIONS = 8192
"""Positions that pass through the body together, padding included."""
CHECKED_PLACES = 4
"""Places of a sequence at which trees are compared with sequences of their own."""
_TOLERANCE = 1e-3
"""By how much two ways to the same logits may differ, relative to their range: rounding, and not another answer."""
_REFUSALS = (ValueError, TypeError, RuntimeError, IndexError, AttributeError)
"""What bodies raise for a mask of four dimensions or for positions that they cannot take."""


class _Given(nn.Module):
    """Stands in for a body: hands over hidden states that are known already."""

    def __init__(self, output: ModelOutput) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Any, **__: Any) -> ModelOutput:
        return self.output


class Reader:
    """A model that reads the places of a study."""

    def __init__(self, model: Any, encoded: Encoded, label: str) -> None:
        """Check that the model can answer. Raises :class:`InputError` naming ``label`` if it cannot, Diverged among them."""
        self._model = model
        self._label = label
        self._encoded = encoded
        self._output: Callable[..., ModelOutput] = ModelOutput  # what this body gives: families differ in its fields
        self._check_sizes()
        with torch.inference_mode():
            self._check_logits()
            self.takes_trees = self._takes_trees()

    def lots(self) -> Iterator[Lot]:
        """All places of the study, in order."""
        return plan_lots(self._encoded, LOT_POSITIONS)

    def states(self, lot: Lot) -> Tensor:
        """(R, D): what the output embedding is applied to, at the lot's places and then at its nodes."""
        return self._in_trees(lot) if self.takes_trees else self._one_by_one(lot)

    def logits(self, h_RD: Tensor) -> Tensor:
        """(R, V): as the model itself makes them from these states, with all that it does after its output embedding."""
        # A shallow copy with another body: the model itself stays as it is.
        outer = copy.copy(self._model)
        given = _Given(self._output(last_hidden_state=h_RD[None]))
        outer._modules = {**self._model._modules, self._model.base_model_prefix: given}
        ids_1R = torch.zeros(1, len(h_RD), dtype=torch.int64, device=h_RD.device)
        logits_RV: Tensor = outer(input_ids=ids_1R, use_cache=False).logits[0]
        return logits_RV[:, : len(self._encoded.vocabulary)]

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's tokens."""
        return self._encoded.vocabulary

    # -------------------------------------------------------------------------------------------------- two ways to read

    def body(self, ids_BL: npt.NDArray[np.int64], **kwargs: Any) -> Tensor:
        """(B, L, D): the last hidden states of whole sequences."""
        x_BL = torch.from_numpy(ids_BL).to(self._model.device)
        output = self._model.base_model(input_ids=x_BL, use_cache=False, **kwargs)
        self._output = type(output)
        h_BLD: Tensor = output.last_hidden_state
        return h_BLD

    def _in_trees(self, lot: Lot) -> Tensor:
        encoded, study = self._encoded, self._encoded.study
        position_C = encoded.position_C[lot.place_C]
        texts = [int(encoded.position_C[high - 1]) + 1 for _, high in lot.sequences]
        sizes = [high - low for low, high in lot.sequences]
        bounds = np.searchsorted(lot.place_N, np.concatenate([[0], np.cumsum(sizes)]))
        length = max(text + int(nodes) for text, nodes in zip(texts, np.diff(bounds), strict=True))
        x_BL = np.zeros((len(texts), length), dtype=np.int64)
        position_BL = np.zeros_like(x_BL)
        sees_BLL = np.zeros((len(texts), length, length), dtype=bool)
        sees_BLL[:, :, 0] = True  # padding sees something: attention to nothing would be NaN
        sequence_C = np.repeat(np.arange(len(texts)), sizes)
        index_N = np.empty(len(lot.token_N), dtype=np.int64)
        for b, text in enumerate(texts):
            nodes = slice(bounds[b], bounds[b + 1])
            rows = slice(text, text + int(bounds[b + 1] - bounds[b]))
            x_BL[b, :text] = encoded.passages[study.passage_C[lot.sequences[b][0]]][:text]
            x_BL[b, rows] = lot.token_N[nodes]
            position_BL[b, :text] = np.arange(text)
            position_BL[b, rows] = position_C[lot.place_N[nodes]] + lot.depth_N[nodes]
            sees_BLL[b, :text, :text] = np.tril(np.ones((text, text), dtype=bool))
            sees_BLL[b, rows, :text] = np.arange(text) <= position_C[lot.place_N[nodes]][:, None]
            sees_BLL[b, rows, rows] = ancestors(lot.parent_N[nodes] - lot.places - bounds[b])
            index_N[nodes] = np.arange(rows.start, rows.stop)
        h_BLD = self.body(
            x_BL,
            attention_mask=self._mask(sees_BLL),
            position_ids=torch.from_numpy(position_BL).to(self._model.device),
        )
        row_R = torch.from_numpy(np.concatenate([sequence_C, sequence_C[lot.place_N]]))
        index_R = torch.from_numpy(np.concatenate([position_C, index_N]))
        return h_BLD[row_R.to(h_BLD.device), index_R.to(h_BLD.device)]

    def _mask(self, sees_BLL: npt.NDArray[np.bool_]) -> Tensor:
        """(B, 1, L, L): as the body's attention takes it; eager attention adds it to the scores."""
        sees_B1LL = torch.from_numpy(sees_BLL[:, None]).to(self._model.device)
        if self._model.base_model.config._attn_implementation != "eager":
            return sees_B1LL
        dtype = self._model.dtype
        return torch.zeros(sees_B1LL.shape, dtype=dtype, device=self._model.device).masked_fill_(
            ~sees_B1LL, torch.finfo(dtype).min
        )

    def _one_by_one(self, lot: Lot) -> Tensor:
        """The same states from plain sequences: the texts, and the text before each place followed by each path of its tree."""
        encoded, study = self._encoded, self._encoded.study
        sequences: list[Ids] = []
        reads: list[list[tuple[int, int]]] = []  # of each sequence: (row, index)
        for low, high in lot.sequences:
            sequences.append(encoded.passages[study.passage_C[low]][: encoded.position_C[high - 1] + 1])
            done = sum(map(len, reads))
            reads.append([(done + i, int(encoded.position_C[low + i])) for i in range(high - low)])
        inner = set(lot.parent_N.tolist())
        for node in range(len(lot.token_N)):
            if lot.places + node in inner:
                continue  # on the path of another
            place = int(lot.place_C[lot.place_N[node]])
            path = path_to(lot, node)
            text = encoded.passages[study.passage_C[place]][: encoded.position_C[place] + 1]
            sequences.append(np.concatenate([text, lot.token_N[path]]))
            reads.append([(lot.places + each, len(text) + i) for i, each in enumerate(path)])
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        h_RD: Tensor | None = None
        for some in _by_size([len(sequences[i]) for i in order]):
            chosen = [order[i] for i in some]
            x_BL = np.zeros((len(chosen), max(len(sequences[i]) for i in chosen)), dtype=np.int64)
            for b, i in enumerate(chosen):
                x_BL[b, : len(sequences[i])] = sequences[i]
            h_BLD = self.body(x_BL)  # padding comes after everything that is read
            if h_RD is None:
                h_RD = h_BLD.new_empty(lot.places + len(lot.token_N), h_BLD.shape[-1])
            rows = [(row, b, index) for b, i in enumerate(chosen) for row, index in reads[i]]
            row_r, b_r, index_r = np.array(rows).T
            h_RD[row_r] = h_BLD[b_r, index_r]
        assert h_RD is not None, "a lot has at least one place"
        return h_RD

    # ------------------------------------------------------------------------------------------------------- the checks

    def _check_sizes(self) -> None:
        embeddings = self._model.get_input_embeddings().weight.shape[0]
        if embeddings < len(self._encoded.vocabulary):
            raise InputError(
                f"{self._label}: the model has {embeddings} token embeddings and its tokenizer "
                f"{len(self._encoded.vocabulary)} tokens; save the tokenizer that it was trained with beside it"
            )
        check_positions(self._model, self._label, self._encoded.longest)

    def _check_logits(self) -> None:
        """Logits made apart from the body must be those that the whole model makes."""
        ids_1L = self._encoded.passages[0][None, :8]
        try:
            whole_LV = self._model(input_ids=torch.from_numpy(ids_1L).to(self._model.device)).logits[0]
            apart_LV = self.logits(self.body(ids_1L)[0])
        except _REFUSALS as error:
            raise InputError(f"{self._label}: cannot be read as a causal language model ({error})") from error
        if not bool(torch.isfinite(whole_LV[:, : apart_LV.shape[1]]).all()):
            raise Diverged(self._label)
        if not _close(whole_LV[:, : apart_LV.shape[1]], apart_LV):
            raise InputError(
                f"{self._label}: the model's logits are not a function of its last hidden state alone; it cannot be probed"
            )

    def _takes_trees(self) -> bool:
        """Whether trees say what sequences of their own say, at the end of the fullest sequence and of the longest text.

        A window that a mask of four dimensions goes round, or one counted in columns instead of positions, shows there.
        """
        sequences = plan_sequences(self._encoded)
        longest = max(sequences, key=lambda sequence: self._encoded.position_C[sequence[1] - 1])
        try:
            return all(self._trees_agree(low, high) for low, high, _ in {sequences[0], longest})
        except _REFUSALS:
            return False

    def _trees_agree(self, low: int, high: int) -> bool:
        """Whether a sequence with the trees of these places gives its last ones what sequences of their own do."""
        whole, last = (lot_of(self._encoded, [(first, high)]) for first in (low, max(low, high - CHECKED_PLACES)))
        row_R = [
            *range(whole.places - last.places, whole.places),
            *range(whole.places + len(whole.token_N) - len(last.token_N), whole.places + len(whole.token_N)),
        ]
        return _close(self.logits(self._in_trees(whole)[row_R]), self.logits(self._one_by_one(last)))


def _by_size(lengths: Sequence[int]) -> Iterator[range]:
    """Consecutive items of ascending ``lengths`` whose padded size stays within LOT_POSITIONS."""
    start = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (end + 1 - start) * lengths[end] > LOT_POSITIONS:
            yield range(start, end)
            start = end


def _close(one_RV: Tensor, other_RV: Tensor) -> bool:
    if one_RV.shape != other_RV.shape:
        return False
    # Apart from what is common to all tokens, which a distance may have much of and a probability knows nothing of.
    one_RV, other_RV = (z_RV - z_RV.amax(-1, keepdim=True) for z_RV in (one_RV, other_RV))
    return bool((one_RV - other_RV).abs().max() <= _TOLERANCE * (1 + one_RV.abs().max()))
