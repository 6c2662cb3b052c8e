"""Probabilities of words, of one token or several, at the places of a study.

Shapes: R rows (places, then nodes of trees), V vocabulary, M queries, A candidates of all queries, one query after the other,
X temperatures; k candidates of a query that can be encoded, S rows with little mass, E tokens that end a word.

p(w | c) = prod_i p(s_i | c s_1..s_{i-1}) * B(c w) / B(c), with B the mass of tokens that do not continue a word: Pimentel &
Meister (2406.14561), Oh & Schuler (2406.10851). B(c w) is the probability that the word ends there (" glad", not " gladly").
B(c) cancels between candidates of one model at one place, but not between models; a word without a space begins wherever the
text allows it, and is not divided by it. A word is scored in its tokenizer's own spelling; docs/synonyms.md says what that means
for the sum over words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from analysis.compare.arms import Diverged
from analysis.compare.statistics import Floats, Ids

from .encode import Batch, Encoded
from .hidden_states import Reader

LOGITS = 1 << 21
"""Logits computed at a time: enough for a fast product, and little memory whatever the vocabulary."""
_CACHED = 1 << 17
"""Logits that a CPU processes at a time: these and their exponentials stay in a core's own cache."""
_RULED_OUT = -1e30
"""Replaces a logit of -inf, of a token that a model rules out: 0 * -inf is not a number."""
_SMALL = -60.0
"""If the log of a mass is below this, its terms come near the smallest float32 and are summed again in float64."""


@dataclass(frozen=True)
class WordScores:
    """A model's predictions; natural logarithms, float64."""

    start_M: Ids
    """(M + 1,): the candidates of query m are start_M[m] to start_M[m + 1] - 1, in the order of its unit's candidates."""
    log_p_XA: Floats
    """Log-probability of each candidate as a word, for each temperature; NaN for a candidate that cannot be encoded."""
    rank_A: Ids
    """1 + the number of tokens with a higher logit, for candidates of one token; 0 for others."""
    entropy_XM: Floats
    """Entropy of the next token's distribution at the place, nats."""


def score_words(reader: Reader, temperatures: Sequence[float]) -> WordScores:
    """The model's predictions, on the device it is on. A temperature of NaN (one that could not be found) gives NaN.

    Raises :class:`~analysis.compare.arms.Diverged` if the model's logits are not finite.
    """
    encoded, study = reader.encoded, reader.encoded.study
    device = reader.model.device
    beta_X = torch.tensor([1 / temperature for temperature in temperatures], dtype=torch.float64, device=device)
    ends_V = torch.from_numpy(~encoded.vocabulary.continues).to(device)
    sizes = np.array([len(unit.candidates) for unit in study.units], dtype=np.int64)[study.unit_M]
    start_M = np.concatenate([[0], np.cumsum(sizes)])
    found = WordScores(
        start_M=start_M,
        log_p_XA=np.full((len(temperatures), start_M[-1]), np.nan),
        rank_A=np.zeros(start_M[-1], dtype=np.int64),
        entropy_XM=np.empty((len(temperatures), len(sizes))),
    )
    with torch.inference_mode(), tqdm(total=len(sizes), desc=reader.label, unit="context") as bar:
        for batch in reader.batches():
            _score_batch(reader, batch, beta_X, ends_V, found)
            bar.update(len(batch.query_Q))
    return found


def _score_batch(reader: Reader, batch: Batch, beta_X: Tensor, ends_V: Tensor, found: WordScores) -> None:
    """Fill in the scores of the batch's queries."""
    h_RD = reader.states(batch)
    edge_XN = torch.empty(len(beta_X), len(batch.token_N), dtype=torch.float64)
    rank_N = torch.zeros(len(batch.token_N), dtype=torch.int64)
    order_N = np.argsort(batch.parent_N, kind="stable")
    parents = batch.parent_N[order_N]
    log_b: list[Tensor] = []
    entropy: list[Tensor] = []
    for low, high in _chunks(len(h_RD), batch.places, len(ends_V)):
        logits_RV = reader.logits(h_RD[low:high]).float()
        log_z_XR, log_b_XR, entropy_XR = softmax_rows(logits_RV, beta_X, ends_V, with_entropy=low < batch.places)
        if not bool(torch.isfinite(logits_RV.amax(-1)).all()):
            raise Diverged(reader.label)
        log_b.append(log_b_XR.cpu())
        below = torch.from_numpy(order_N[slice(*np.searchsorted(parents, [low, high]))])
        row = torch.from_numpy(batch.parent_N)[below].to(logits_RV.device) - low
        z_n = logits_RV[row, torch.from_numpy(batch.token_N)[below].to(logits_RV.device)]
        edge_XN[:, below] = (beta_X[:, None] * z_n.double() - log_z_XR[:, row]).cpu()
        if low < batch.places:
            rank_N[below] = _ranks(logits_RV, row, z_n).cpu()
            entropy.append(entropy_XR.cpu())
    found.entropy_XM[:, batch.query_Q] = torch.cat(entropy, dim=1).numpy()[:, batch.place_Q]
    _combine(batch, reader.encoded, edge_XN.numpy(), torch.cat(log_b, dim=1).numpy(), rank_N.numpy(), found)


def _chunks(rows: int, places: int, vocabulary: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows whose logits are computed together; places and nodes apart."""
    step = max(1, LOGITS // vocabulary)
    for first, last in ((0, places), (places, rows)):
        for low in range(first, last, step):
            yield low, min(low + step, last)


def softmax_rows(
    logits_RV: Tensor, beta_X: Tensor, ends_V: Tensor, *, with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Log of the normaliser, log of the mass of tokens that end a word, and entropy (else NaN); each (X, R), float64.

    Computed from sums in float32, with a relative error of about 1e-6.
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
    above_RJ = torch.empty_like(z_RJ)  # integers, which float32 represents up to 16 million
    for part in _parts(logits_RV):
        above_rV = torch.empty_like(logits_RV[part])
        for j in range(children):
            torch.gt(logits_RV[part], z_RJ[part, j, None], out=above_rV)
            torch.sum(above_rV, -1, out=above_RJ[part, j])
    return 1 + above_RJ[row_n, child_n].long()


def _parts(logits_RV: Tensor) -> list[slice]:
    """Rows that are processed together: all on a GPU, as many as fit the cache on a CPU."""
    rows, vocabulary = logits_RV.shape
    step = rows if logits_RV.is_cuda else max(1, _CACHED // vocabulary)
    return [slice(low, min(low + step, rows)) for low in range(0, rows, step)]


def _combine(batch: Batch, encoded: Encoded, edge_XN: Floats, log_b_XR: Floats, rank_N: Ids, found: WordScores) -> None:
    """From tokens to words: add up each candidate's tokens, the end of the word, and the beginning of a word."""
    study = encoded.study
    path_XN = edge_XN.copy()
    for depth in range(2, int(batch.depth_N.max(initial=1)) + 1):
        deep = np.flatnonzero(batch.depth_N == depth)
        path_XN[:, deep] += path_XN[:, batch.parent_N[deep] - batch.places]
    for index, query in enumerate(batch.query_Q):
        unit = study.unit_M[query]
        leaf_K = encoded.trees[unit].leaf_K
        known_k = np.flatnonzero(leaf_K >= 0)
        node_k = batch.offset_Q[index] + leaf_K[known_k]
        log_p_Xk = path_XN[:, node_k] + log_b_XR[:, batch.places + node_k]
        if study.units[unit].spaced:
            log_p_Xk = log_p_Xk - log_b_XR[:, batch.place_Q[index], None]
        candidate_k = found.start_M[query] + known_k
        found.log_p_XA[:, candidate_k] = log_p_Xk
        found.rank_A[candidate_k] = np.where(batch.depth_N[node_k] == 1, rank_N[node_k], 0)
