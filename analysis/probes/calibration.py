"""Does a model know how often it is right? Its confidence in the likeliest next token against how often that is the next one.

Shapes: B windows, T positions, V vocabulary, N positions of all windows, K bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from analysis.compare.text import Ids, RunText

from .base import PROBES, Measure, Probe

Floats = npt.NDArray[np.float64]


@PROBES.register("calibration")
class Calibration(Probe[tuple[Ids, Ids]]):
    """Expected calibration error, Brier score, accuracy, entropy and NLL on held-out text."""

    measures = (
        Measure("nll", "nats/token", "negative log-likelihood"),
        Measure("entropy", "nats", "entropy of the predicted distribution"),
        Measure("accuracy", "1", "share of positions at which the likeliest token is the next one"),
        Measure("confidence", "1", "probability of the likeliest token"),
        Measure("ece", "1", "expected calibration error: |accuracy - confidence|, averaged over bins of equal size"),
        Measure("brier", "1", "sum over tokens of (probability - 1 if it is the next one)^2; 0 to 2"),
        Measure("confidence_by_bin", "1", "mean confidence, from the least confident positions up", along="bin"),
        Measure("accuracy_by_bin", "1", "accuracy at the same positions", along="bin"),
    )

    @dataclass(frozen=True)
    class Options:
        windows: Annotated[int, Field(ge=1)] = 64
        """Windows of the training length, drawn from the validation split."""
        bins: Annotated[int, Field(ge=2, le=1000)] = 15
        """Bins of equal size for the calibration error."""

    def prepare(self, text: RunText, *, seed: int) -> tuple[Ids, Ids]:
        return text.windows(self.options.windows, seed=seed)

    def measure(self, model: Any, prepared: tuple[Ids, Ids], *, seed: int) -> dict[str, float | Floats]:
        parts = []
        for x_T, y_T in zip(*prepared, strict=True):
            logits_TV = model(input_ids=torch.from_numpy(x_T[None]).to(model.device), use_cache=False).logits[0]
            log_p_TV = logits_TV.double().log_softmax(-1)
            y = torch.from_numpy(y_T).to(model.device)[:, None]
            p_TV, true_T = log_p_TV.exp(), log_p_TV.gather(1, y)[:, 0]
            top_T, guess_T = p_TV.max(-1)
            entropy_T = torch.special.entr(p_TV).sum(-1)
            brier_T = p_TV.square().sum(-1) - 2 * true_T.exp() + 1
            parts.append(torch.stack([-true_T, entropy_T, (guess_T == y[:, 0]).double(), top_T, brier_T]).cpu())
        nll_N, entropy_N, right_N, top_N, brier_N = torch.cat(parts, dim=1).numpy()
        bins = min(self.options.bins, len(top_N))
        of_bin = np.array_split(np.argsort(top_N, kind="stable"), bins)
        confidence_K, accuracy_K = (np.array([x_N[at].mean() for at in of_bin]) for x_N in (top_N, right_N))
        share_K = np.array([len(at) for at in of_bin]) / len(top_N)
        return {
            "nll": float(nll_N.mean()),
            "entropy": float(entropy_N.mean()),
            "accuracy": float(right_N.mean()),
            "confidence": float(top_N.mean()),
            "ece": float(share_K @ np.abs(accuracy_K - confidence_K)),
            "brier": float(brier_N.mean()),
            "confidence_by_bin": confidence_K,
            "accuracy_by_bin": accuracy_K,
        }
