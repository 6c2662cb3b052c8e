"""The last values of a scalar and how they scatter, on the device. Shapes: W values of the window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spread:
    """Mean and deviation of what a window holds (float64, ())."""

    count: Tensor
    mean: Tensor
    std: Tensor
    """0 of less than two values."""

    def sigmas(self, value: Tensor, least: int) -> Tensor:
        """Deviations of ``value`` above the mean; 0 below ``least`` values in the window or if these are all equal."""
        known = (self.count >= least) & (self.std > 0)
        return torch.where(known, (value.double() - self.mean) / self.std, 0.0)


class Window:
    """The last ``length`` finite values of a scalar that is equal on all ranks."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.values_W: Tensor | None = None
        """Oldest first, NaN where there has been none yet; made on the device of the first value."""

    def spread(self, like: Tensor, *, unbiased: bool) -> Spread:
        """Of the values so far. ``like``: any tensor on the device."""
        values_W = self._values(like)
        known_W = values_W.isfinite()
        count = known_W.sum()
        mean = torch.where(known_W, values_W, 0.0).sum() / count.clamp(min=1)
        squares = torch.where(known_W, (values_W - mean).square(), 0.0).sum()
        return Spread(count, mean, (squares / (count - int(unbiased)).clamp(min=1)).sqrt())

    def push(self, value: Tensor, when: Tensor | None = None) -> None:
        """Append a value, if it is finite and ``when`` (() boolean) is not false; the oldest leaves a full window."""
        values_W = self._values(value)
        usable = value.isfinite() if when is None else value.isfinite() & when
        self.values_W = torch.where(usable, torch.cat([values_W[1:], value.double()[None]]), values_W)

    def _values(self, like: Tensor) -> Tensor:
        if self.values_W is None:
            self.values_W = torch.full((self.length,), torch.nan, dtype=torch.float64, device=like.device)
        return self.values_W

    def state(self, name: str) -> dict[str, Tensor]:
        """What :meth:`load` restores, under ``name``."""
        return {} if self.values_W is None else {name: self.values_W}

    def load(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned."""
        self.values_W = state[name].clone() if name in state else None
