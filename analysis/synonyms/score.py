"""Probabilities of words, of one token or several, at the places of a study.

Shapes: R rows (places, then nodes of trees), V vocabulary, M questions, A answers (candidates of all questions, one after the
other), X temperatures; k candidates of a question that can be encoded, S rows with little mass, E tokens that end a word.

The probability of a word w after c is p(w | c) = prod_i p(s_i | c s_1..s_{i-1}) * B(c w) / B(c), with B the mass of tokens
that do not go on with a word: Pimentel & Meister (2406.14561), Oh & Schuler (2406.10851). The factor B(c w) is the probability
that the word ends there (" glad" and not " gladly"). B(c) belongs to words that bring their own space; it cancels between
candidates of one model at one place and not between models. A word without a space begins wherever the text lets it, and is
not divided by B(c). A word is asked for in its tokenizer's own spelling: over all spellings, and the chance that no word
begins, the probabilities sum to one, over all words to less where a word can be put together from tokens in other ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from analysis.compare.arms import Diverged
from analysis.words.vocabulary import Ids

from .batching import Lot
from .encode import Encoded
from .hidden_states import Reader

Floats = npt.NDArray[np.float64]

LOGITS = 1 << 21
"""Logits that are formed at a time: enough for a quick product, and little memory whatever the vocabulary."""
_CACHED = 1 << 17
"""Logits that a processor goes over at a time: these and their exponentials stay in a core's own cache."""
_RULED_OUT = -1e30
"""In the place of a logit of -inf, a token that a model rules out: 0 * -inf is no number."""
_SMALL = -60.0
"""Where the log of a mass is below this, its terms come near the smallest float32 and are summed again in float64."""


@dataclass(frozen=True)
class Answers:
    """A model's predictions; natural logarithms, float64."""

    start_M: Ids
    """(M + 1,): the answers of question m are start_M[m] to start_M[m + 1] - 1, in the order of its unit's candidates."""
    log_p_XA: Floats
    """Log-probability of each candidate as a word, for each temperature; NaN for a candidate that cannot be encoded."""
    rank_A: Ids
    """1 + the number of tokens with a higher logit, for candidates of one token; 0 for others."""
    entropy_XM: Floats
    """Entropy of the next token's distribution at the place, nats."""
    takes_trees: bool
    """Whether the model was read with a mask in the form of a tree, or one sequence after the other."""


def answer(
    model: Any, encoded: Encoded, temperatures: tuple[float, ...], *, label: str, progress: bool = True
) -> Answers:
    """The predictions of a model in evaluation mode, on the device it is on; ``label`` names it in errors and on the bar.

    A temperature of NaN (one that could not be found) gives NaN.
    Raises :class:`InputError` if the model does not fit the study, and its kind
    :class:`~analysis.compare.arms.Diverged` if its logits are not finite.
    """
    study = encoded.study
    reader = Reader(model, encoded, label)
    beta_X = torch.tensor([1 / temperature for temperature in temperatures], dtype=torch.float64, device=model.device)
    ends_V = torch.from_numpy(~encoded.vocabulary.continues).to(model.device)
    sizes = np.array([len(unit.candidates) for unit in study.units], dtype=np.int64)[study.unit_M]
    start_M = np.concatenate([[0], np.cumsum(sizes)])
    found = Answers(
        start_M=start_M,
        log_p_XA=np.full((len(temperatures), start_M[-1]), np.nan),
        rank_A=np.zeros(start_M[-1], dtype=np.int64),
        entropy_XM=np.empty((len(temperatures), len(sizes))),
        takes_trees=reader.takes_trees,
    )
    with (
        torch.inference_mode(),
        tqdm(total=len(sizes), desc=label, unit="context", disable=not progress) as bar,
    ):
        for lot in reader.lots():
            _answer_lot(reader, lot, encoded, beta_X, ends_V, found, label)
            bar.update(len(lot.question_Q))
    return found


def _answer_lot(
    reader: Reader, lot: Lot, encoded: Encoded, beta_X: Tensor, ends_V: Tensor, found: Answers, label: str
) -> None:
    """Fill in the answers to the lot's questions."""
    h_RD = reader.states(lot)
    edge_XN = torch.empty(len(beta_X), len(lot.token_N), dtype=torch.float64)
    rank_N = torch.zeros(len(lot.token_N), dtype=torch.int64)
    order_N = np.argsort(lot.parent_N, kind="stable")
    parents = lot.parent_N[order_N]
    log_b: list[Tensor] = []
    entropy: list[Tensor] = []
    for low, high in _chunks(len(h_RD), lot.places, len(encoded.vocabulary)):
        logits_RV = reader.logits(h_RD[low:high]).float()
        log_z_XR, log_b_XR, entropy_XR = softmax_rows(logits_RV, beta_X, ends_V, with_entropy=low < lot.places)
        if not bool(torch.isfinite(logits_RV.amax(-1)).all()):
            raise Diverged(label)
        log_b.append(log_b_XR.cpu())
        below = torch.from_numpy(order_N[slice(*np.searchsorted(parents, [low, high]))])
        row = torch.from_numpy(lot.parent_N)[below].to(logits_RV.device) - low
        z_n = logits_RV[row, torch.from_numpy(lot.token_N)[below].to(logits_RV.device)]
        edge_XN[:, below] = (beta_X[:, None] * z_n.double() - log_z_XR[:, row]).cpu()
        if low < lot.places:
            rank_N[below] = _ranks(logits_RV, row, z_n).cpu()
            entropy.append(entropy_XR.cpu())
    found.entropy_XM[:, lot.question_Q] = torch.cat(entropy, dim=1).numpy()[:, lot.place_Q]
    _words(lot, encoded, edge_XN.numpy(), torch.cat(log_b, dim=1).numpy(), rank_N.numpy(), found)


def _chunks(rows: int, places: int, vocabulary: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows whose logits are formed together; places and nodes apart."""
    step = max(1, LOGITS // vocabulary)
    for first, last in ((0, places), (places, rows)):
        for low in range(first, last, step):
            yield low, min(low + step, last)


def softmax_rows(
    logits_RV: Tensor, beta_X: Tensor, ends_V: Tensor, *, with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Log of the normaliser, log of the mass of tokens that end a word, and entropy (else NaN); each (X, R), float64.

    From sums in float32: their relative error is some 1e-6.
    """
    top_R1 = logits_RV.amax(-1, keepdim=True)
    sum_XR, ends_XR, moment_XR = logits_RV.new_full((3, len(beta_X), len(logits_RV)), torch.nan)
    ends_in_V = ends_V.to(logits_RV.dtype)
    for part in _parts(logits_RV):
        shifted_rV = (logits_RV[part] - top_R1[part]).clamp_(min=_RULED_OUT)
        e_rV = torch.empty_like(shifted_rV)
        for x, beta in enumerate(beta_X.tolist()):
            torch.mul(shifted_rV, beta, out=e_rV).exp_()
            torch.sum(e_rV, -1, out=sum_XR[x, part])
            torch.mv(e_rV, ends_in_V, out=ends_XR[x, part])
            if with_entropy:
                torch.sum(e_rV.mul_(shifted_rV), -1, out=moment_XR[x, part])
    log_sum_XR = sum_XR.double().log()
    log_b_XR = ends_XR.double().log() - log_sum_XR
    for x, r in (log_b_XR < _SMALL).nonzero().tolist():
        ends_E = (beta_X[x] * (logits_RV[r] - top_R1[r]).double())[ends_V]
        log_b_XR[x, r] = ends_E.logsumexp(-1) - log_sum_XR[x, r]
    entropy_XR = log_sum_XR - beta_X[:, None] * moment_XR.double() / sum_XR.double()
    return beta_X[:, None] * top_R1[:, 0].double() + log_sum_XR, log_b_XR, entropy_XR


def _ranks(logits_RV: Tensor, row_n: Tensor, z_n: Tensor) -> Tensor:
    """1 + the number of logits above each z; ``row_n`` ascends."""
    child_n = torch.arange(len(row_n), device=row_n.device) - torch.searchsorted(row_n, row_n)
    children = int(child_n.max()) + 1 if len(row_n) else 0
    z_RJ = logits_RV.new_full((len(logits_RV), children), torch.inf)
    z_RJ[row_n, child_n] = z_n
    above_RJ = torch.empty_like(z_RJ)  # whole numbers, which float32 holds up to 16 million
    for part in _parts(logits_RV):
        above_rV = torch.empty_like(logits_RV[part])
        for j in range(children):
            torch.gt(logits_RV[part], z_RJ[part, j, None], out=above_rV)
            torch.sum(above_rV, -1, out=above_RJ[part, j])
    return 1 + above_RJ[row_n, child_n].long()


def _parts(logits_RV: Tensor) -> list[slice]:
    """Rows that are gone over together: all on a device, as many as its cache holds on a processor."""
    rows, vocabulary = logits_RV.shape
    step = rows if logits_RV.is_cuda else max(1, _CACHED // vocabulary)
    return [slice(low, min(low + step, rows)) for low in range(0, rows, step)]


def _words(lot: Lot, encoded: Encoded, edge_XN: Floats, log_b_XR: Floats, rank_N: Ids, found: Answers) -> None:
    """From tokens to words: the sum of each candidate's edges, the probability of its end, and that of a beginning."""
    study = encoded.study
    path_XN = edge_XN.copy()
    for depth in range(2, int(lot.depth_N.max(initial=1)) + 1):
        deep = np.flatnonzero(lot.depth_N == depth)
        path_XN[:, deep] += path_XN[:, lot.parent_N[deep] - lot.places]
    for index, question in enumerate(lot.question_Q):
        unit = study.unit_M[question]
        leaf_K = encoded.trees[unit].leaf_K
        known_k = np.flatnonzero(leaf_K >= 0)
        node_k = lot.offset_Q[index] + leaf_K[known_k]
        log_p_Xk = path_XN[:, node_k] + log_b_XR[:, lot.places + node_k]
        if study.units[unit].spaced:
            log_p_Xk = log_p_Xk - log_b_XR[:, lot.place_Q[index], None]
        answer_k = found.start_M[question] + known_k
        found.log_p_XA[:, answer_k] = log_p_Xk
        found.rank_A[answer_k] = np.where(lot.depth_N[node_k] == 1, rank_N[node_k], 0)
