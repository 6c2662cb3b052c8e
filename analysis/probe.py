"""What a language model predicts at the places where one of a set of words comes next.

Shapes: B windows, T positions of a window, D width, V vocabulary, C places that pass through the head together,
M (place, unit) combinations, K candidates: the word, its synonym, then the controls.

The model sees the validation split in consecutive windows of the training length, as in training. Only the chosen
places pass through the output head, so that no B*T x V tensor is ever formed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from configs.errors import InputError

from .words import Ids, Study

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Floats = npt.NDArray[np.float64]

_BODY_TOKENS = 4096  # tokens that pass through the body together
_HEAD_PLACES = 128  # places that pass through the head together


@dataclass(frozen=True)
class Questions:
    """Every (place, unit) combination of a study, ordered by place."""

    place_M: Ids
    unit_M: Ids
    token_MK: Ids

    @classmethod
    def of(cls, study: Study) -> Questions:
        """Each unit at each chosen place of its word."""
        place_M = np.concatenate([study.places[unit.word] for unit in study.units])
        unit_M = np.repeat(np.arange(len(study.units)), [len(study.places[unit.word]) for unit in study.units])
        order = np.lexsort((unit_M, place_M))
        token_UK = np.array([(unit.word, unit.synonym, *unit.controls) for unit in study.units], dtype=np.int64)
        return cls(place_M[order], unit_M[order], token_UK[unit_M[order]])


@dataclass(frozen=True)
class Answers:
    """A model's predictions for each question; natural logarithms, float64."""

    log_p_MK: Floats
    """Log-probability of the word, the synonym and each control."""
    log_share_MK: Floats
    """Log of p / (1 - p of the word): the share of the probability that the word leaves. The first column is NaN."""
    rank_MK: Ids
    """1 + the number of tokens with a higher logit: 1 is the most probable."""
    entropy_M: Floats
    """Entropy of the whole predictive distribution, nats."""


def ask(model: torch.nn.Module, study: Study, questions: Questions, *, label: str, progress: bool = True) -> Answers:
    """The predictions of a transformers causal LM in evaluation mode, on the device it is on; ``label`` names it.

    Raises :class:`InputError` if the model's vocabulary or number of positions does not suffice, if its logits are more
    than its output embedding applied to the last hidden state, or if they are not finite.
    """
    import torch

    _check_sizes(model, study, label)
    place_C = np.unique(questions.place_M)
    length = study.sequence_length
    windows = np.unique((place_C - 1) // length)
    group = max(1, _BODY_TOKENS // length)
    parts: list[tuple[Any, ...]] = []
    with (
        torch.inference_mode(),
        tqdm(total=len(windows), desc=label, unit="window", disable=None if progress else True) as bar,
    ):
        for start in range(0, len(windows), group):
            window_B = windows[start : start + group]
            x_BT = torch.from_numpy(
                np.stack([study.ids[w * length : (w + 1) * length] for w in window_B]).astype(np.int64)
            )
            h_BTD = _hidden(model, x_BT)
            if start == 0:
                _check_head(model, x_BT, h_BTD, label)
            first, last = np.searchsorted(place_C, [window_B[0] * length + 1, (window_B[-1] + 1) * length + 1])
            for low in range(first, last, _HEAD_PLACES):
                chunk_C = place_C[low : min(low + _HEAD_PLACES, last)]
                row_C = np.searchsorted(window_B, (chunk_C - 1) // length)
                h_CD = h_BTD[torch.from_numpy(row_C), torch.from_numpy((chunk_C - 1) % length)]
                parts.append(_answers(model, h_CD, chunk_C, questions, label))
            bar.update(len(window_B))
    columns = [torch.cat(column).numpy() for column in zip(*parts, strict=True)]
    return Answers(*columns)


def _answers(
    model: Any, h_CD: Tensor, place_C: Ids, questions: Questions, label: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fields of :class:`Answers` for all questions at the places ``place_C``, on the CPU."""
    import torch

    low, high = np.searchsorted(questions.place_M, [place_C[0], place_C[-1] + 1])
    row_M = torch.from_numpy(np.searchsorted(place_C, questions.place_M[low:high])).to(h_CD.device)
    token_MK = torch.from_numpy(questions.token_MK[low:high]).to(h_CD.device)
    head = model.get_output_embeddings()
    logits_CV = head(h_CD)[:, : getattr(head, "n_classes", None)].double()  # without the vocabulary's padding
    if not bool(torch.isfinite(logits_CV).all()):
        raise InputError(f"{label}: the model's logits are not finite; it has diverged: name an earlier checkpoint")
    log_p_CV = logits_CV.log_softmax(-1)
    entropy_C = -(log_p_CV.exp() * log_p_CV).sum(-1)
    log_p_MV = log_p_CV[row_M]
    log_p_MK = log_p_MV.gather(1, token_MK)
    rank_MK = torch.stack([1 + (log_p_MV > log_p_M1).sum(-1) for log_p_M1 in log_p_MK.split(1, dim=1)], dim=1)
    # What the word leaves is summed over the others: 1 - p has no digits left where p is nearly 1.
    log_rest_M1 = log_p_MV.scatter(1, token_MK[:, :1], -torch.inf).logsumexp(-1, keepdim=True)
    log_share_MK = log_p_MK - log_rest_M1
    log_share_MK[:, 0] = torch.nan
    return log_p_MK.cpu(), log_share_MK.cpu(), rank_MK.cpu(), entropy_C[row_M].cpu()


def _hidden(model: Any, x_BT: Tensor) -> Tensor:
    return model.base_model(input_ids=x_BT.to(model.device), use_cache=False).last_hidden_state


def _check_sizes(model: Any, study: Study, label: str) -> None:
    embeddings = model.get_input_embeddings().weight.shape[0]
    if embeddings < len(study.vocabulary):
        raise InputError(
            f"{label}: the model has {embeddings} token embeddings and the tokenizer {len(study.vocabulary)} tokens; "
            "name a model trained with the baseline's tokenizer"
        )
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and positions < study.sequence_length:
        raise InputError(
            f"{label}: the model has {positions} positions and the baseline's data.sequence_length is "
            f"{study.sequence_length}; name a model with as many, or take this one as the baseline"
        )


def _check_head(model: Any, x_BT: Tensor, h_BTD: Tensor, label: str) -> None:
    """Some models scale or cap their logits after the head: refuse them rather than measure something else."""
    import torch

    few = slice(0, min(8, x_BT.shape[1]))
    whole = model(input_ids=x_BT[:1, few].to(model.device)).logits[0].float()
    apart = model.get_output_embeddings()(h_BTD[0, few]).float()
    if whole.shape != apart.shape or not torch.allclose(whole, apart, rtol=1e-3, atol=1e-2, equal_nan=True):
        raise InputError(
            f"{label}: the model's logits are not its output embedding of the last hidden state (scaled or capped "
            "logits); this measurement does not support it"
        )
