"""What a training step measures, on the device and without waiting for it.

Shapes: B batch, T positions, N tokens, V vocabulary, D width, G groups, P parameters (tensors).

Hooks on the blocks and on the final normalisation keep norms per token; the loss brings its own per-token statistics;
gradients, parameters and updates are summed up by group. At the end of a step :meth:`Telemetry.collect` reduces all of it
over micro-batches and ranks into one dictionary of 0-d device tensors. Nothing here reads a value on the host.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .distributed import all_reduce, world_size
from .metrics import describe
from .vitals import full, tensor_norms, whole

WEIGHT_BINS = 16_000
"""Histogram bins of log10 c between 1e-16 and 1: a bin is 0.23% wide, so a quantile is within 0.12%."""
_WEIGHT_DECADES = 16
PORTION = 100_000
"""Parameters whose copy and norms are taken together on CPU: two sets of them fit a core's second-level cache."""


Means = dict[str, tuple[Tensor, Tensor]]
"""By metric name: the mean on this rank, and how many values it is a mean of."""


class Losses(Protocol):
    """What a forward pass reports about its tokens."""

    objective_sum: Tensor
    nll_sum: Tensor
    valid_N: Tensor
    statistics: dict[str, Tensor]
    sampled: dict[str, Tensor]

    @property
    def sampled_valid(self) -> Tensor:
        """valid_N of the tokens that ``sampled`` is about."""
        ...


def parameter_groups(
    names: Sequence[str], embedding_prefix: str, blocks_prefix: str, head_prefix: str
) -> dict[str, list[int]]:
    """Indices of the parameters in each group: embedding, layer_NN, norm and head.

    A tied output weight counts as embedding. Norms inside a block belong to its layer; ``norm`` is the final one.
    """
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        layer = re.match(re.escape(blocks_prefix) + r"\.(\d+)\.", name)
        if layer:
            group = f"layer_{int(layer[1]):02d}"
        elif name.startswith(head_prefix):
            group = "head"
        elif name.startswith(embedding_prefix) or "emb" in name or re.search(r"\bwpe\b", name):
            group = "embedding"
        else:
            group = "norm"
        groups.setdefault(group, []).append(index)
    return groups


class GroupNorms:
    """L2 norms of lists of tensors, by group: one norm a tensor, then two small device operations."""

    def __init__(self, groups: dict[str, list[int]], parameters: Sequence[Tensor]) -> None:
        self.names = list(groups)
        device = parameters[0].device
        self.members_GP = torch.zeros(len(groups), len(parameters), device=device)
        for row, indices in enumerate(groups.values()):
            self.members_GP[row, indices] = 1
        assert bool((self.members_GP.sum(0) == 1).all()), "every parameter must be in exactly one group"
        counts = [sum(parameters[i].numel() for i in indices) for indices in groups.values()]
        self.root_count_G = torch.tensor([math.sqrt(c) for c in counts], device=device)

    @torch.no_grad()
    def __call__(self, norm_P: Tensor) -> tuple[Tensor, Tensor]:
        """Norm of each group (G,) and of all tensors together (), in float32, from the norms of the P tensors."""
        squares = norm_P.float().square()
        return (self.members_GP @ squares).sqrt(), squares.sum().sqrt()


class Telemetry:
    """Measures of one training step at a time. See the module's docstring; names are those of metrics.py."""

    def __init__(
        self,
        blocks: nn.ModuleList,
        final_norm: nn.Module,
        head: nn.Module,
        named_parameters: dict[str, nn.Parameter],
        groups: dict[str, list[int]],
        enabled: bool = True,
    ) -> None:
        self.head, self.enabled = head, enabled
        self.n_classes = getattr(head, "n_classes", None)
        self.parameters: list[Tensor] = list(named_parameters.values())
        self.group_norms = GroupNorms(groups, self.parameters)
        self.before = [torch.empty_like(p) for p in self.parameters] if enabled else []
        self.portions = _portions(self.parameters)
        self._reset()
        self._handles = self._add_hooks(blocks, final_norm) if enabled else []

    def _reset(self) -> None:
        self.norms: dict[str, list[Tensor]] = {}
        self.measured: tuple[Any, Any] = (None, None)
        """The hidden states measured last and their norms (N,)."""
        self.losses: list[Losses] = []
        self.attention: list[dict[str, Tensor]] = []
        self.step_values: dict[str, Tensor] = {}

    def _add_hooks(self, blocks: nn.ModuleList, final_norm: nn.Module) -> list[Any]:
        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, arguments: Any, output: Any = None) -> None:
                if module.training:  # an evaluation leaves no trace
                    value = output if output is not None else arguments
                    h_BTD = value[0] if isinstance(value, tuple) else value
                    # The last block's output is the final norm's input, and measured once, unless FSDP2 comes between them.
                    if h_BTD is not self.measured[0]:
                        with torch.no_grad():
                            norm_N = torch.linalg.vector_norm(h_BTD.float(), dim=-1).flatten()
                        self.measured = (h_BTD, norm_N)
                    self.norms.setdefault(name, []).append(self.measured[1])

            return hook

        handles = [b.register_forward_hook(keep(f"hidden_norm/layer_{i:02d}")) for i, b in enumerate(blocks)]
        handles.append(final_norm.register_forward_pre_hook(keep("hidden_norm/pre_final")))
        handles.append(final_norm.register_forward_hook(keep("hidden_norm/final")))
        return handles

    def add_losses(self, losses: Losses) -> None:
        """Take in the losses of one micro-batch."""
        self.losses.append(losses)

    def add_attention(self, layers: Sequence[dict[str, Tensor]]) -> None:
        """Take in what a probe found in each layer: {"logit_max": (), "entropy": ()}. May be empty."""
        self.attention = list(layers)

    @torch.no_grad()
    def before_update(self) -> Tensor:
        """Measure gradients and parameters, after synchronisation and before clipping; returns the total gradient norm ().

        ``gradient_norm_P`` and ``parameter_norm_P`` are then the norms of each parameter.
        """
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        self.gradient_norm_P = tensor_norms(gradients)
        groups, total = self.group_norms(self.gradient_norm_P)
        self.step_values["grad_norm/total"] = total
        if self.enabled:
            self._store("grad_norm", groups)
            norms: list[Tensor] = []
            for portion in self.portions:
                for copy, parameter in zip(self.before[portion], self.parameters[portion], strict=True):
                    copy.copy_(parameter)  # foreach_copy_ cannot take sharded ones
                norms += torch._foreach_norm(self.parameters[portion])
            self.parameter_norm_P = whole(norms)
            self._store("param_norm", self.group_norms(self.parameter_norm_P)[0])
            norms_V = full(torch.linalg.vector_norm(self.head.get_parameter("weight"), dim=1))
            norms_V = norms_V[: self.n_classes]  # without the vocabulary's padding
            self.step_values |= {"embedding_norm/mean": norms_V.mean(), "embedding_norm/max": norms_V.max()}
        else:
            self.parameter_norm_P = tensor_norms(self.parameters)
        return total

    @torch.no_grad()
    def after_update(self) -> None:
        """Measure what the optimizer's step changed."""
        if self.enabled:
            norms: list[Tensor] = []
            for portion in self.portions:
                torch._foreach_sub_(self.before[portion], self.parameters[portion])
                norms += torch._foreach_norm(self.before[portion])
            self._store("update_rms", self.group_norms(whole(norms))[0] / self.group_norms.root_count_G)

    def _store(self, kind: str, values_G: Tensor) -> None:
        self.step_values |= {
            f"{kind}/{name}": v for name, v in zip(self.group_norms.names, values_G.unbind(), strict=True)
        }

    @torch.no_grad()
    def loss_values(self) -> dict[str, Tensor]:
        """loss/nll and loss/objective of the step so far, reduced over micro-batches and ranks.

        ``local_loss`` is then a sum of this rank's alone, finite if they are.
        """
        sums = torch.stack(
            [
                sum((x.objective_sum.detach() for x in self.losses), start=torch.zeros_like(self.losses[0].nll_sum)),
                sum((x.nll_sum for x in self.losses), start=torch.zeros_like(self.losses[0].nll_sum)),
                torch.stack([x.valid_N.sum() for x in self.losses]).sum(),
            ]
        )
        self.local_loss = sums[:2].sum()
        all_reduce(sums, "sum")
        return {"loss/objective": sums[0] / sums[2], "loss/nll": sums[1] / sums[2]}

    @torch.no_grad()
    def collect(self) -> dict[str, Tensor]:
        """Everything measured since the last call, by metric name, as 0-d tensors equal on all ranks."""
        means: Means = {}
        maxima: dict[str, Tensor] = {}
        histogram = None
        if self.enabled:
            for name, pieces in self.norms.items():
                norms_N = torch.cat(pieces)
                means[f"{name}/mean"] = (norms_N.mean(), torch.full((), float(len(norms_N)), device=norms_N.device))
                maxima[f"{name}/max"] = norms_N.max()
            histogram = self._reduce_statistics(means, maxima)
            self._reduce_attention(means, maxima)
        values = self.step_values | _over_ranks(means, maxima)
        if histogram is not None:
            all_reduce(histogram, "sum")
            values["tfsd/weight_p10"] = weight_quantile(histogram, 0.1)
        self._reset()
        return values

    def _reduce_statistics(self, means: Means, maxima: dict[str, Tensor]) -> Tensor | None:
        """Fill in this rank's means and maxima of the per-token statistics; returns the histogram of the TFSD weight."""
        valid_N = torch.cat([x.valid_N for x in self.losses]) > 0
        histogram = None
        for name in self.losses[0].statistics:
            value_N = torch.cat([x.statistics[name] for x in self.losses])
            if name == "tfsd/weight":
                means["tfsd/weight_mean"] = _mean(value_N, valid_N)
                means["tfsd/weight_below_1pct"] = _mean((value_N < 0.01).float(), valid_N)
                histogram = weight_histogram(value_N, valid_N)
            elif describe(name).reduction == "max":
                maxima[name] = torch.where(valid_N, value_N, -math.inf).max()
            else:
                means[name] = _mean(value_N, valid_N)
        for name in self.losses[0].sampled:
            value_S = torch.cat([x.sampled[name] for x in self.losses])
            valid_S = torch.cat([x.sampled_valid for x in self.losses]) > 0
            means[name] = _mean(value_S, valid_S)
        return histogram

    def _reduce_attention(self, means: Means, maxima: dict[str, Tensor]) -> None:
        if not self.attention:
            return
        one = self.attention[0]["entropy"].new_ones(())  # all ranks probe equally many sequences
        for index, layer in enumerate(self.attention):
            means[f"attention/layer_{index:02d}/entropy"] = (layer["entropy"], one)
            maxima[f"attention/layer_{index:02d}/logit_max"] = layer["logit_max"]
        means["attention/entropy"] = (torch.stack([layer["entropy"] for layer in self.attention]).mean(), one)
        maxima["attention/logit_max"] = torch.stack([layer["logit_max"] for layer in self.attention]).max()


def _mean(value_N: Tensor, valid_N: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the valid values, and how many they are."""
    count = valid_N.sum()
    return torch.where(valid_N, value_N, 0).sum() / count.clamp(min=1), count


def _over_ranks(means: Means, maxima: dict[str, Tensor]) -> dict[str, Tensor]:
    """Means of what they are means of on all ranks, and maxima; each kind in one collective."""
    if world_size() == 1 or not means:
        return {name: mean for name, (mean, _) in means.items()} | maxima
    totals_2M = torch.stack(
        [torch.stack([mean.float() * count, count.float()]) for mean, count in means.values()], dim=1
    )
    max_values = torch.stack([v.float() for v in maxima.values()])
    all_reduce(totals_2M, "sum")
    all_reduce(max_values, "max")
    reduced = totals_2M[0] / totals_2M[1].clamp(min=1)
    return dict(zip(means, reduced.unbind(), strict=True)) | dict(zip(maxima, max_values.unbind(), strict=True))


def weight_histogram(weight_N: Tensor, valid_N: Tensor) -> Tensor:
    """Counts (WEIGHT_BINS,) of log10 of the valid weights, from 1e-16 (and below) to 1. Sums over ranks are exact."""
    position = (weight_N.clamp(1e-16, 1).log10() + _WEIGHT_DECADES) * (WEIGHT_BINS / _WEIGHT_DECADES)
    bins_N = position.nan_to_num(0).long().clamp(0, WEIGHT_BINS - 1)
    return torch.zeros(WEIGHT_BINS, device=weight_N.device).scatter_add_(0, bins_N, valid_N.float())


def weight_quantile(histogram: Tensor, q: float) -> Tensor:
    """The centre of the bin that holds quantile ``q`` of the weights."""
    cumulative = histogram.cumsum(0)
    index = torch.searchsorted(cumulative, q * cumulative[-1:])[0]
    return 10 ** ((index + 0.5) * (_WEIGHT_DECADES / WEIGHT_BINS) - _WEIGHT_DECADES)


def _portions(parameters: Sequence[Tensor]) -> list[slice]:
    """Runs of parameters to go through one after the other: on CPU what a core's cache keeps between two operations."""
    if parameters[0].device.type != "cpu":
        return [slice(None)]
    starts, size = [0], 0
    for index, parameter in enumerate(parameters):
        if size and size + parameter.numel() > PORTION:
            starts.append(index)
            size = 0
        size += parameter.numel()
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], len(parameters)], strict=True)]
