"""Does a model know how often it is right? Its confidence in the likeliest next token against how often that is the next one.

A temperature is fitted on every second window, and its gain measured on the others.

Shapes: B windows, T positions, V vocabulary, N positions of all windows, M of a sample of them, K bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from analysis.compare import temperature
from analysis.compare.reliability import calibration_error, equal_bins, error_if_calibrated
from analysis.compare.statistics import Floats
from analysis.compare.text import Ids, RunText

from .base import PROBES, Measure, Probe

FITTED = 2048
"""Most positions on which a temperature is fitted: it is one number, and their logits are kept."""
_AT_ONCE = 256
"""Of these, how many are evaluated at once."""


class Prepared(NamedTuple):
    """What all models are measured on."""

    x_BT: Ids
    y_BT: Ids
    count_V: Ids
    """How often each token occurs in the training text."""


@PROBES.register("calibration")
class Calibration(Probe[Prepared]):
    """Calibration error, Brier score, accuracy, entropy and NLL on held-out text, by frequency and at the best temperature."""

    measures = (
        Measure("nll", "nats/token", "negative log-likelihood"),
        Measure("entropy", "nats", "entropy of the predicted distribution"),
        Measure("accuracy", "1", "share of positions at which the likeliest token is the next one"),
        Measure("confidence", "1", "probability of the likeliest token"),
        Measure("ece", "1", "expected calibration error: |accuracy - confidence|, averaged over bins of equal size"),
        Measure("ece_if_calibrated", "1", "what ece would be on average if the model were right as often as it says: noise"),
        Measure("brier", "1", "sum over tokens of (probability - 1 if it is the next one)^2; 0 to 2"),
        Measure(
            "temperature", "1", "by which logits are to be divided for the lowest NLL on half of the windows", positive=True
        ),
        Measure("nll_held", "nats/token", "nll on the other half"),
        Measure("nll_tempered", "nats/token", "nll on the other half at that temperature"),
        Measure("ece_held", "1", "ece on the other half"),
        Measure("ece_tempered", "1", "ece on the other half at that temperature"),
        Measure("confidence_by_bin", "1", "mean confidence, from the least confident positions up", along="bin"),
        Measure("accuracy_by_bin", "1", "accuracy at the same positions", along="bin"),
        Measure(
            "nll_by_frequency", "nats/token", "nll, from the rarest next tokens up: bins of equal size by their count in the "
            "training text", along="frequency bin",
        ),
        Measure(
            "ece_by_frequency", "1", "ece in the same bins; above 0 for a calibrated model, too, as a bin knows the next token",
            along="frequency bin",
        ),
        Measure(
            "ece_by_guess_frequency", "1", "ece, from the rarest likeliest tokens up, which the model knows",
            along="frequency bin",
        ),
        Measure("ece_by_guess_frequency_if_calibrated", "1", "ece_if_calibrated of these bins", along="frequency bin"),
        Measure("count_by_frequency", "1", "mean count of the next token in the training text", along="frequency bin"),
    )  # fmt: skip

    @dataclass(frozen=True)
    class Options:
        windows: Annotated[int, Field(ge=1)] = 64
        """Windows of the training length, drawn from the validation split."""
        bins: Annotated[int, Field(ge=2, le=1000)] = 15
        """Bins of equal size for the calibration error."""
        frequency_bins: Annotated[int, Field(ge=1, le=1000)] = 5
        """Bins of equal size by the frequency of the next token."""

    def prepare(self, text: RunText, *, seed: int) -> Prepared:
        return Prepared(*text.windows(self.options.windows, seed=seed), text.training_counts())

    def measure(self, model: Any, prepared: Prepared, *, seed: int) -> dict[str, float | Floats]:
        bins, windows = self.options.bins, range(len(prepared.x_BT))
        sample = _Sample(prepared.x_BT[::2].size)
        reads: dict[int, Tensor] = {}
        tempered: list[Tensor] = []
        for window in windows[::2]:
            logits_TV, y_T1 = _logits(model, prepared, window)
            reads[window] = _read(logits_TV, y_T1)
            sample.add(logits_TV, y_T1)
        best = sample.best()
        for window in windows[1::2]:
            logits_TV, y_T1 = _logits(model, prepared, window)
            reads[window] = _read(logits_TV, y_T1)
            tempered.append(_read(logits_TV / best, y_T1))
        found = _joined([reads[window] for window in windows])
        of_bin = equal_bins(found.top_N, bins)
        return {
            "nll": float(found.nll_N.mean()),
            "entropy": float(found.entropy_N.mean()),
            "accuracy": float(found.right_N.mean()),
            "confidence": float(found.top_N.mean()),
            "ece": calibration_error(found.top_N, found.right_N, bins),
            "ece_if_calibrated": error_if_calibrated(found.top_N, bins, seed),
            "brier": float(found.brier_N.mean()),
            "temperature": best,
            **_held_out("held", [reads[window] for window in windows[1::2]], bins),
            **_held_out("tempered", tempered, bins),
            "confidence_by_bin": np.array([found.top_N[at].mean() for at in of_bin]),
            "accuracy_by_bin": np.array([found.right_N[at].mean() for at in of_bin]),
            **_by_frequency(found, prepared, self.options, seed),
        }


class _Read(NamedTuple):
    """What is read of each position."""

    nll_N: Floats
    entropy_N: Floats
    right_N: Floats
    top_N: Floats
    """The largest probability."""
    brier_N: Floats
    guess_N: Floats
    """The likeliest token."""


def _logits(model: Any, prepared: Prepared, window: int) -> tuple[Tensor, Tensor]:
    """Logits (T, V) of a window in float64, and its targets (T, 1)."""
    x_1T, y_T = (
        torch.from_numpy(ids_BT[window]).to(model.device) for ids_BT in (prepared.x_BT[:, None], prepared.y_BT)
    )
    return model(input_ids=x_1T, use_cache=False).logits[0].double(), y_T[:, None]


def _read(logits_TV: Tensor, y_T1: Tensor) -> Tensor:
    """The fields of :class:`_Read` (6, T)."""
    log_p_TV = logits_TV.log_softmax(-1)
    p_TV, true_T = log_p_TV.exp(), log_p_TV.gather(1, y_T1)[:, 0]
    top_T, guess_T = p_TV.max(-1)
    brier_T = p_TV.square().sum(-1) - 2 * true_T.exp() + 1
    right_T = guess_T == y_T1[:, 0]
    return torch.stack([-true_T, torch.special.entr(p_TV).sum(-1), right_T, top_T, brier_T, guess_T]).cpu()


def _joined(parts: list[Tensor]) -> _Read:
    return _Read(*torch.cat(parts, dim=1).numpy())


def _held_out(name: str, parts: list[Tensor], bins: int) -> dict[str, float]:
    """NLL and ECE of the windows that the temperature was not fitted on; NaN without any."""
    if not parts:
        return {f"nll_{name}": math.nan, f"ece_{name}": math.nan}
    read = _joined(parts)
    error = calibration_error(read.top_N, read.right_N, bins)
    return {f"nll_{name}": float(read.nll_N.mean()), f"ece_{name}": error}


def _by_frequency(read: _Read, prepared: Prepared, options: Calibration.Options, seed: int) -> dict[str, Floats]:
    count_N = prepared.count_V[prepared.y_BT].ravel()
    guess_N = np.minimum(
        read.guess_N.astype(np.int64), len(prepared.count_V)
    )  # a row that pads the vocabulary may be likeliest
    of_next, of_guess = (
        equal_bins(x_N, options.frequency_bins) for x_N in (count_N, np.append(prepared.count_V, 0)[guess_N])
    )

    def errors(of_bin: list[Ids]) -> Floats:
        return np.array([calibration_error(read.top_N[at], read.right_N[at], options.bins) for at in of_bin])

    return {
        "nll_by_frequency": np.array([read.nll_N[at].mean() for at in of_next]),
        "ece_by_frequency": errors(of_next),
        "ece_by_guess_frequency": errors(of_guess),
        "ece_by_guess_frequency_if_calibrated": np.array(
            [error_if_calibrated(read.top_N[at], options.bins, seed) for at in of_guess]
        ),
        "count_by_frequency": np.array([count_N[at].mean() for at in of_next]),
    }


class _Sample(temperature.Calibration):
    """Positions at equal distances among those of the windows that are added, at any temperature."""

    precision = 1e-9

    def __init__(self, positions: int) -> None:
        self._step, self._next = math.ceil(positions / FITTED), 0
        self._parts: list[tuple[Tensor, Tensor]] = []

    def add(self, logits_TV: Tensor, y_T1: Tensor) -> None:
        """Keep what is needed of a window."""
        kept_TV, kept_T1 = (x[self._next :: self._step] for x in (logits_TV.float(), y_T1))
        self._parts += zip(kept_TV.split(_AT_ONCE), kept_T1.split(_AT_ONCE), strict=True)
        self._next = (self._next - len(logits_TV)) % self._step

    def means(self, beta: float) -> tuple[float, float, float]:
        """See :meth:`temperature.Calibration.means`; the slope is the mean of E[z] - z_y, E the expectation under the model."""
        sums = torch.zeros(3, dtype=torch.float64)
        for logits_MV, y_M1 in self._parts:
            nll_M, entropy_M, *_ = _read(beta * logits_MV.double(), y_M1)
            # The entropy is log Z - beta E[z], so that the slope is (NLL - entropy) / beta.
            sums += torch.stack([(nll_M - entropy_M).sum() / beta, entropy_M.sum(), nll_M.sum()])
        slope, entropy, nll = (sums / sum(len(y_M1) for _, y_M1 in self._parts)).tolist()
        return slope, entropy, nll
