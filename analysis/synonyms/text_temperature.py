"""The temperatures of a model on held-out text.

Shapes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch

from analysis.compare.temperature import Calibration

from .hidden_states import Reader
from .score import LOGITS, softmax_rows

TOKENS = 2048
"""Held-out tokens on which a temperature is fitted."""


class TextCalibration(Calibration):
    """A model's next-token distributions on a sample of the study's passages, at any temperature."""

    precision = 1e-6
    """What float32 allows: one model at two temperatures must not look like two."""

    def __init__(self, reader: Reader, seed: int) -> None:
        """Read a sample of the passages, the same for every model with the study's tokenizer."""
        self._reader = reader
        passages = reader.encoded.passages
        states: list[torch.Tensor] = []
        targets: list[torch.Tensor] = []
        found = 0
        with torch.inference_mode():
            for index in np.random.default_rng([seed, len(passages)]).permutation(len(passages)):
                ids = passages[index]
                if found >= TOKENS:
                    break
                if len(ids) < 2:
                    continue
                states.append(reader.body(ids[None])[0, :-1])
                targets.append(torch.from_numpy(ids[1:]).to(states[-1].device))
                found += len(ids) - 1
        self._h_ND = torch.cat(states)[:TOKENS]
        self._y_N = torch.cat(targets)[:TOKENS]

    def means(self, beta: float) -> tuple[float, float, float]:
        """See :meth:`Calibration.means`; the slope is the mean of E[z] - z_y, E the expectation under the model."""
        sums = torch.zeros(3, dtype=torch.float64)
        vocabulary = len(self._reader.encoded.vocabulary)
        step = max(1, LOGITS // vocabulary)
        beta_X = torch.tensor([beta], dtype=torch.float64, device=self._h_ND.device)
        all_V = torch.ones(vocabulary, dtype=torch.bool, device=self._h_ND.device)
        with torch.inference_mode():
            for h_RD, y_R in zip(self._h_ND.split(step), self._y_N.split(step), strict=True):
                logits_RV = self._reader.logits(h_RD).float()
                (log_z_R,), _, (entropy_R,) = softmax_rows(logits_RV, beta_X, all_V, with_entropy=True)
                nll_R = log_z_R - beta * logits_RV.gather(1, y_R[:, None])[:, 0].double()
                # The entropy is log Z - beta E[z], so that the slope is (NLL - entropy) / beta.
                sums += torch.stack([(nll_R - entropy_R).sum() / beta, entropy_R.sum(), nll_R.sum()]).cpu()
        slope, entropy, nll = (sums / len(self._y_N)).tolist()
        return slope, entropy, nll
