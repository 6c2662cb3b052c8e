"""What a training step measures, on the device and without waiting for it.

Hooks on the blocks and on the final normalisation collect norms per token; the loss brings its own statistics per token;
gradients, parameters and updates are measured by group. At the end of a step :meth:`Telemetry.collect` reduces them over
micro-batches and ranks into a dictionary of 0-d device tensors.

Shapes: B batch, T positions, N tokens, V vocabulary, D width, G groups, P parameters (tensors).
"""

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from model.chunked import TokenLosses
from ranks.collectives import all_reduce, world_size
from record.metrics import describe

from .edge import noise_scale
from .norms import GroupNorms, full, norms_of, portions_of, tensor_norms, total_norm, whole

WEIGHT_BINS = 16_000
"""Histogram bins of log10 c between 1e-16 and 1: a bin is 0.23% wide, so a quantile is within 0.12%."""
_WEIGHT_DECADES = 16
BLOCK, KURTOSIS = "hidden_norm/layer_", "hidden_kurtosis/layer_"
Means = dict[str, tuple[Tensor, Tensor]]
"""By metric name: the mean on this rank, and the number of values."""


class Telemetry:
    """Measurements of one training step at a time, named as in record/metrics.py."""

    def __init__(
        self,
        blocks: nn.ModuleList,
        final_norm: nn.Module,
        head: nn.Module,
        named_parameters: dict[str, nn.Parameter],
        groups: dict[str, list[int]],
        measured: Collection[str],
    ) -> None:
        """``measured``: of norms, updates, hidden, logits, those to measure; without any, only the total gradient norm."""
        self.head, self.measured = head, measured
        self.n_classes = getattr(head, "n_classes", None)
        self.parameters: list[Tensor] = list(named_parameters.values())
        self.groups = groups
        self.group_norms = GroupNorms(groups, self.parameters)
        self.before: list[Tensor] = []
        """The parameters before the optimizer's step, from :meth:`before_update` to :meth:`after_update`."""
        if "updates" in measured:
            self.keep_before()
        self.portions = portions_of(self.parameters)
        self.probing = False
        """Within :meth:`probe`."""
        self._reset()
        self._handles = self._add_hooks(blocks, final_norm) if measured else []

    def keep_before(self) -> None:
        """Keep ``before`` from now on, even if nothing is measured."""
        self.before = self.before or [torch.empty_like(p) for p in self.parameters]

    def _reset(self) -> None:
        self.norms: dict[str, list[Tensor]] = {}
        """By metric name, of the step's micro-batches."""
        self.latest: dict[str, Tensor] = {}
        """The same of the current micro-batch. Empty before each: a compiled body is compiled anew for every length of a list
        that its hooks have seen."""
        self.last_hidden: tuple[Any, Any] = (None, None)
        """The hidden states measured last, and their norms (N,)."""
        self.losses: list[TokenLosses] = []
        """Of the step's micro-batches."""
        self.attention: list[dict[str, Tensor]] = []
        """Filled in by a probe of the attention: by layer, {"logit_max": (), "entropy": ()}."""
        self.step_values: dict[str, Tensor] = {}
        self.first_3: Tensor | None = None
        """Of the first of several micro-batches: the squared norm of its mean gradient, its number of targets, and the step's."""

    def _add_hooks(self, blocks: nn.ModuleList, final_norm: nn.Module) -> list[Any]:
        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, arguments: Any, output: Any = None) -> None:
                value = output if output is not None else arguments
                h_BTD = value[0] if isinstance(value, tuple) else value
                if module.training and "hidden" in self.measured:  # evaluation leaves no trace
                    # The last block's output is the final norm's input: measured only once (FSDP2 may make a copy).
                    if h_BTD is not self.last_hidden[0]:
                        with torch.no_grad():
                            norm_N = torch.linalg.vector_norm(h_BTD.float(), dim=-1).flatten()
                        self.last_hidden = (h_BTD, norm_N)
                    self.latest[name] = self.last_hidden[1]
                elif self.probing and not module.training and name.startswith(BLOCK):
                    self.step_values[name.replace(BLOCK, KURTOSIS)] = excess_kurtosis(h_BTD)

            return hook

        handles = [b.register_forward_hook(keep(f"{BLOCK}{i:02d}")) for i, b in enumerate(blocks)]
        handles.append(final_norm.register_forward_pre_hook(keep("hidden_norm/pre_final")))
        handles.append(final_norm.register_forward_hook(keep("hidden_norm/final")))
        return handles

    @contextmanager
    def probe(self) -> Iterator[None]:
        """Within the block, a forward pass in evaluation mode measures the kurtosis of the residual stream for the step to
        come. All ranks pass the same sequences."""
        self.probing = True
        try:
            yield
        finally:
            self.probing = False

    def end_micro_batch(self, losses: TokenLosses) -> None:
        """Keep the losses of a micro-batch, and what the hooks have measured of it, until the end of the step."""
        self.losses.append(losses)
        for name, norm_N in self.latest.items():
            self.norms.setdefault(name, []).append(norm_N)
        self.latest, self.last_hidden = {}, (None, None)

    @torch.no_grad()
    def after_first_micro_batch(self, targets: Tensor, *, factor: float, shared: bool) -> None:
        """Measure the gradient of the first of several micro-batches, before others are added to it.

        ``targets``: the number by which the step's loss is divided; ``factor``: by which the gradient is multiplied besides;
        ``shared``: whether it is already the mean over ranks, and not this rank's alone.
        """
        count = self.losses[0].valid_N.sum()
        if shared:
            all_reduce(count, "sum")
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        norm = total_norm(tensor_norms(gradients)) * targets / (factor * count)
        self.first_3 = torch.stack([norm.square(), count.float(), targets.float()])
        if not shared:
            all_reduce(self.first_3, "sum")
            self.first_3 /= world_size()

    @torch.no_grad()
    def before_update(self) -> Tensor:
        """Measure gradients and parameters, after synchronisation and before clipping; returns the total gradient norm ().
        Sets ``gradient_norm_P`` and ``parameter_norm_P``, the norms of each parameter."""
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        self.gradient_norm_P = tensor_norms(gradients)
        groups, total = self.group_norms(self.gradient_norm_P)
        self.step_values["grad_norm/total"] = total
        if self.first_3 is not None:
            small_square, small, big = self.first_3.unbind()
            self.step_values |= noise_scale(small_square, total.square(), small, big)
        norms: list[Tensor] = []
        for portion in self.portions:
            for copy, parameter in zip(self.before[portion], self.parameters[portion], strict=False):  # none or all
                copy.copy_(parameter)  # foreach_copy_ cannot take sharded ones
            norms += norms_of(self.parameters[portion])
        self.parameter_norm_P = whole(norms)
        if "norms" in self.measured or "updates" in self.measured:
            self.parameter_norm_G, _ = self.group_norms(self.parameter_norm_P)
        if "norms" in self.measured:
            self._store("grad_norm", groups)
            self._store("param_norm", self.parameter_norm_G)
            norms_V = full(torch.linalg.vector_norm(self.head.get_parameter("weight"), dim=1))
            norms_V = norms_V[: self.n_classes]  # without the vocabulary's padding
            self.step_values |= {"embedding_norm/mean": norms_V.mean(), "embedding_norm/max": norms_V.max()}
        return total

    @torch.no_grad()
    def after_update(self) -> None:
        """Measure the change made by the optimizer's step."""
        if "updates" in self.measured:
            norms: list[Tensor] = []
            for portion in self.portions:
                torch._foreach_sub_(self.before[portion], self.parameters[portion])
                norms += norms_of(self.before[portion])
            norms_G, _ = self.group_norms(whole(norms))
            self._store("update_rms", norms_G / self.group_norms.root_count_G)
            self._store("update_ratio", norms_G / self.parameter_norm_G)

    def _store(self, kind: str, values_G: Tensor) -> None:
        self.step_values |= {
            f"{kind}/{name}": v for name, v in zip(self.group_norms.names, values_G.unbind(), strict=True)
        }

    @torch.no_grad()
    def loss_values(self) -> dict[str, Tensor]:
        """loss/nll and loss/objective of the step, reduced over micro-batches and ranks. Sets ``local_loss``, a sum over
        this rank alone that is finite if they are."""
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
        if self.measured:
            for name, pieces in self.norms.items():
                norms_N = torch.cat(pieces)
                means[f"{name}/mean"] = (norms_N.mean(), torch.full((), float(len(norms_N)), device=norms_N.device))
                maxima[f"{name}/max"] = norms_N.max()
            histogram = self._reduce_statistics(means, maxima)
            self._reduce_negatives(means)
            self._reduce_attention(means, maxima)
        values = self.step_values | _over_ranks(means, maxima)
        if histogram is not None:
            all_reduce(histogram, "sum")
            values["tfsd/weight_p10"] = weight_quantile(histogram, 0.1)
        self._reset()
        return values

    def _reduce_statistics(self, means: Means, maxima: dict[str, Tensor]) -> Tensor | None:
        """Add this rank's means and maxima of the per-token statistics; returns the histogram of the TFSD weight."""
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

    def _reduce_negatives(self, means: Means) -> None:
        """Add what is measured of the negatives alone."""
        found = [x.negatives for x in self.losses if x.negatives is not None]
        for name in found[0].statistics if found else ():
            if name.startswith("negative/"):
                valid_N = torch.cat([x.valid_N for x in found]) > 0
                means[name] = _mean(torch.cat([x.statistics[name] for x in found]), valid_N)

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
    """Mean and number of the valid values."""
    count = valid_N.sum()
    return torch.where(valid_N, value_N, 0).sum() / count.clamp(min=1), count


def _over_ranks(means: Means, maxima: dict[str, Tensor]) -> dict[str, Tensor]:
    """Means and maxima over all ranks, with one collective each."""
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


@torch.no_grad()
def excess_kurtosis(h: Tensor) -> Tensor:
    """Excess kurtosis () of all entries of ``h``: the mean fourth power of their distance from their mean in standard
    deviations, less the 3 of a normal distribution; 0 if all are equal."""
    square = (h.float() - h.float().mean()).square()
    variance = square.mean()
    return torch.where(variance == 0, torch.zeros_like(variance), (square / variance).square().mean() - 3)


def weight_histogram(weight_N: Tensor, valid_N: Tensor) -> Tensor:
    """Counts (WEIGHT_BINS,) of log10 of the valid TFSD weights, from 1e-16 (and below) to 1; exact under sums over ranks."""
    position = (weight_N.clamp(1e-16, 1).log10() + _WEIGHT_DECADES) * (WEIGHT_BINS / _WEIGHT_DECADES)
    bins_N = position.nan_to_num(0).long().clamp(0, WEIGHT_BINS - 1)
    return torch.zeros(WEIGHT_BINS, device=weight_N.device).scatter_add_(0, bins_N, valid_N.float())


def weight_quantile(histogram: Tensor, q: float) -> Tensor:
    """The centre of the bin that contains quantile ``q``."""
    cumulative = histogram.cumsum(0)
    index = torch.searchsorted(cumulative, q * cumulative[-1:])[0]
    return 10 ** ((index + 0.5) * (_WEIGHT_DECADES / WEIGHT_BINS) - _WEIGHT_DECADES)
