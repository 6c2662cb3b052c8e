"""Where a model grows: norms of what the residual stream, the last normalisation, the embeddings and the logits hold.

Shapes: T positions of a window, N positions of all windows, D width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from analysis.compare.text import Ids, RunText
from model import final_norm

from .base import PROBES, Measure, Probe
from .states import residual_stream


@PROBES.register("radial")
class Radial(Probe[tuple[Ids, int]]):
    """Norms at the four places where a model can grow, how alike the directions of hidden states are, and stable ranks."""

    measures = (
        Measure("residual", "1", "residual stream before the last normalisation, mean L2 norm", positive=True),
        Measure("gain", "1", "parameters of the last normalisation, L2 norm", positive=True),
        Measure("embedding", "1", "output embeddings, mean L2 norm", positive=True),
        Measure("logits", "nats", "logits, standard deviation over the vocabulary, mean of positions", positive=True),
        Measure("hidden", "1", "hidden states as the head gets them, mean L2 norm", positive=True),
        Measure("direction_share", "1", "norm of the mean hidden state over their mean norm: 1 if all point one way"),
        Measure("anisotropy", "1", "mean cosine of two hidden states"),
        Measure(
            "stable_rank", "1", "squared Frobenius norm over squared spectral norm, mean of matrices", positive=True
        ),
        Measure("residual_by_layer", "1", "residual stream before the first block and after each", along="layer"),
        Measure(
            "stable_rank_by_matrix", "1", "that of each weight matrix, in their order in the model", along="matrix"
        ),
    )

    @dataclass(frozen=True)
    class Options:
        windows: Annotated[int, Field(ge=1)] = 16
        """Windows of the training length, drawn from the validation split."""

    def prepare(self, text: RunText, *, seed: int) -> tuple[Ids, int]:
        return text.windows(self.options.windows, seed=seed)[0], text.store.vocab_size

    def measure(self, model: Any, prepared: tuple[Ids, int], *, seed: int) -> dict[str, Any]:
        x_BT, vocabulary = prepared
        head = model.get_output_embeddings()
        h_ND, norms, spreads = [], [], []
        for x_T in x_BT:
            *stream, h_TD = residual_stream(model, x_T)
            norms.append(torch.stack([torch.linalg.vector_norm(s_TD, dim=1).mean() for s_TD in stream]))
            logits_TV = model(input_ids=torch.from_numpy(x_T[None]).to(model.device), use_cache=False).logits[0]
            spreads.append(logits_TV[:, :vocabulary].double().std(1, correction=0).mean())
            h_ND.append(h_TD)
        by_layer = torch.stack(norms).double().mean(0).cpu().numpy()
        by_token = {id(head.weight), id(model.get_input_embeddings().weight)}  # further rows only pad these
        ranks = [stable_rank(p[:vocabulary] if id(p) in by_token else p) for p in _matrices(model).values()]
        return {
            "residual": float(by_layer[-1]),
            "gain": _gain(model),
            "embedding": float(torch.linalg.vector_norm(head.weight[:vocabulary].double(), dim=1).mean()),
            "logits": float(torch.stack(spreads).mean()),
            **directions_of(torch.cat(h_ND)),
            "stable_rank": float(np.nanmean(ranks)),
            "residual_by_layer": by_layer,
            "stable_rank_by_matrix": ranks,
        }

    def places_of(self, model: Any, along: str) -> list[str]:
        return [_short(name) for name in _matrices(model)] if along == "matrix" else []


def _matrices(model: Any) -> dict[str, Tensor]:
    """The weight matrices by name, in their order in the model."""
    return {name: p for name, p in model.named_parameters() if p.ndim == 2 and min(p.shape) > 1}


def _short(name: str) -> str:
    """The number of a parameter's block, if it is in one, and the two modules that it is in."""
    *modules, _ = name.split(".")
    block = next((module for module in modules if module.isdigit()), None)
    last = modules[modules.index(block) + 1 :] if block else modules
    return ".".join([block, *last[-2:]] if block else last[-1:]) or name


def _gain(model: Any) -> float:
    """NaN for a model without a last normalisation, or whose has no parameters."""
    try:
        parameters = [p.double().square().sum() for p in final_norm(model.base_model).parameters()]
    except AttributeError:
        return math.nan
    return float(torch.stack(parameters).sum().sqrt()) if parameters else math.nan


def directions_of(h_ND: Tensor) -> dict[str, float]:
    """Of hidden states: their mean norm, the share of it that is common to all, and the mean cosine of two of them."""
    h_ND = h_ND.double()
    norm_N = torch.linalg.vector_norm(h_ND, dim=1)
    total = float((h_ND / norm_N[:, None]).sum(0).square().sum())
    count = len(h_ND)
    return {
        "hidden": float(norm_N.mean()),
        "direction_share": float(torch.linalg.vector_norm(h_ND.mean(0)) / norm_N.mean()),
        "anisotropy": (total - count) / (count * (count - 1)),
    }


def stable_rank(matrix: Tensor) -> float:
    """Squared Frobenius norm over the squared largest singular value; NaN for zeros."""
    wide = matrix.double()
    square = wide.T @ wide if wide.shape[0] > wide.shape[1] else wide @ wide.T
    return float(square.trace() / torch.linalg.eigvalsh(square)[-1])
