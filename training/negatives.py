"""The negatives of a step: which rows they are, once stresses have disturbed the batch, and how the model is told.

Shapes: R rows of this rank, K of them negatives, T positions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Rows = npt.NDArray[np.int64]


def told(negative_K: Rows | None, first: int, rows: int, device: torch.device) -> dict[str, Tensor]:
    """The model's argument for the negatives among the batch's ``rows`` rows from ``first`` on; none in a run without."""
    if negative_K is None:
        return {}
    inside = negative_K[(first <= negative_K) & (negative_K < first + rows)] - first
    return {"negative_rows": torch.from_numpy(inside).to(device, non_blocking=True)}
