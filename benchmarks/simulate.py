"""The memory of one micro-batch, counted while the model runs on real tensors or on fake ones that take no memory.

Every storage that an operation creates counts for as long as it lives. On fake tensors (torch's FakeTensorMode) a model of any
size goes through all its operations in seconds, with the same count as on real ones. It is that of eager PyTorch on a CPU, whose
attention keeps no T x T matrix, nor does the GPU's. torch.compile needs less; allocators need more, as they round up and split.

Shapes: B sequences, T positions, N = B * T tokens, D width.
"""

from __future__ import annotations

import contextlib
import weakref
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from configs.schema import RunConfig
from model import SwapHeadForCausalLM, rows
from model.chunked import chunk_rows, chunked_loss
from training.build import model_config, prepare_model


@dataclass(frozen=True)
class MicroBatch:
    """Bytes beyond weights and gradients during one micro-batch."""

    kept: int
    """Kept by the body for its backward pass, with the tokens and its output."""
    forward: int
    """Peak until the loss is known: ``kept`` and the head's buffers."""
    backward: int
    """Peak of the backward pass."""

    @property
    def peak(self) -> int:
        """The larger peak."""
        return max(self.forward, self.backward)


class StorageCounter(TorchDispatchMode):
    """Counts the bytes of all storages that operations inside create, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._storages: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_iter(made):
            if isinstance(value, Tensor):
                self.count(value)
        return made

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's storage once."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def gone(_: Any) -> None:
            self.bytes -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, gone)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


def micro_batch(
    config: RunConfig,
    vocabulary: int,
    sequences: int,
    *,
    sharded: bool = False,
    device: str = "cuda",
    fake: bool = True,
) -> MicroBatch:
    """Bytes that forward and backward pass of ``sequences`` sequences need beyond weights and gradients.

    ``sharded``: autocast does not cache its copies of parameters (ranks.launch.autocast_sharded). ``device``: determines the
    size of the head's chunks. ``fake``: on fake tensors; otherwise everything is really computed.
    """
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.train.precision)
    length = config.data.sequence_length
    eager = config.model_copy(update={"train": config.train.model_copy(update={"compile": False})})
    # The rows of a chunk are processed all at once: the same memory, with hundreds of operations fewer.
    whole_chunk = mock.patch.object(rows, "BLOCK_BYTES", 1 << 60)
    with FakeTensorMode() if fake else contextlib.nullcontext(), whole_chunk:
        model = prepare_model(eager, SwapHeadForCausalLM(model_config(config, vocabulary, 0)))
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        counter = StorageCounter()
        for tensor in [t for p in model.parameters() for t in (p, p.grad)] + list(model.buffers()):
            counter.count(tensor)
        state = counter.bytes
        chunk = chunk_rows(sequences * length, vocabulary, device)
        with counter:
            x_BT = torch.zeros(sequences, length, dtype=torch.long)
            with torch.autocast("cpu", half, enabled=half is not None, cache_enabled=not sharded):
                h_ND = model.model(input_ids=x_BT, use_cache=False).last_hidden_state.flatten(0, 1)
                kept = counter.bytes - state
                losses = chunked_loss(model.lm_head, model.objective, h_ND, x_BT.flatten(), statistics=True, rows=chunk)
            forward = counter.peak - state
            counter.peak = counter.bytes
            losses.objective_sum.backward()
            return MicroBatch(kept, forward, counter.peak - state)
