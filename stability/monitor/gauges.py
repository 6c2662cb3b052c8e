"""What a monitor measures of a step, on the device and without waiting for it.

The numbers are those that stability/measure/telemetry.py has of this project's own loop, for any model and any optimizer.
Shapes: G groups, P parameters (tensors), H places of hidden states, N tokens, V vocabulary, B batch, D width.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stability.measure.norms import GroupNorms, norms_of, portions_of

from .groups import find_parts, group_names


class Gauges:
    """Hooks on a model, and norms of the parameters that its optimizers update."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        patterns: Mapping[str, str],
        guard: AbstractContextManager[Any],
    ) -> None:
        """``patterns``: see :func:`~stability.monitor.groups.group_names`. Hooks run inside ``guard``.

        Raises ValueError for parameters that are sharded, or on several devices.
        """
        parts = find_parts(model)
        group_of = group_names(model, parts, patterns)
        names = {id(p): name for name, p in model.named_parameters()}
        self.optimizers = list(optimizers)
        self.parameters: list[Tensor] = [*parameters_of(optimizers)]
        _check(self.parameters)
        groups: dict[str, list[int]] = {}
        for index, parameter in enumerate(self.parameters):
            groups.setdefault(group_of.get(names.get(id(parameter), ""), "other"), []).append(index)
        self.norms = GroupNorms(dict(sorted(groups.items())), self.parameters)
        self.device = self.parameters[0].device
        self.portions = portions_of(self.parameters)
        self.before = [torch.empty_like(p, requires_grad=False) for p in self.parameters]
        self.head = parts.head
        self.hidden: dict[str, list[Tensor]] = {}
        """Norms (N,) by place, of the micro-batches since the last step."""
        self.last_hidden: tuple[Any, Any] = (None, None)
        """The hidden states measured last, and their norms (N,)."""
        self.handles: list[Any] = []
        for number, block in enumerate(parts.blocks.values()):
            if number == 0:
                self._listen(block, "hidden_norm/embedding", guard, of_input=True)
            self._listen(block, f"hidden_norm/layer_{number:02d}", guard)
        if parts.final_norm is not None:
            self._listen(parts.final_norm, "hidden_norm/pre_final", guard, of_input=True)
            self._listen(parts.final_norm, "hidden_norm/final", guard)

    def _listen(
        self, module: nn.Module, place: str, guard: AbstractContextManager[Any], of_input: bool = False
    ) -> None:
        ear = Ear(self._hear, place, guard, of_input)
        if of_input:
            self.handles.append(module.register_forward_pre_hook(ear, with_kwargs=True))
        else:
            self.handles.append(module.register_forward_hook(ear))

    def remove(self) -> None:
        """Take the hooks off the model, and free the copy of the parameters."""
        for handle in self.handles:
            handle.remove()
        self.before, self.hidden, self.last_hidden = [], {}, (None, None)

    @torch.no_grad()
    def _hear(self, place: str, value: Any) -> None:
        h_BTD = value[0] if isinstance(value, tuple | list) and value else value
        if not (isinstance(h_BTD, Tensor) and h_BTD.is_floating_point() and h_BTD.ndim > 1):
            return  # a block that passes on something else has no hidden state to measure
        # The last block's output is the final norm's input, and the first one's input may be what a hook sees again.
        if h_BTD is not self.last_hidden[0]:
            wide = torch.float32 if h_BTD.itemsize < 4 else None
            norm_N = torch.linalg.vector_norm(h_BTD.detach(), dim=-1, dtype=wide).flatten()
            self.last_hidden = (h_BTD, norm_N)
        self.hidden.setdefault(place, []).append(self.last_hidden[1])

    @torch.no_grad()
    def before_update(self, scale: Tensor | None, total: Tensor | None) -> tuple[list[str], list[Tensor]]:
        """Measure gradients, parameters and hidden states: names, and vectors of their values one after the other.

        ``scale``: the factor that gradients carry. ``total``: their norm before clipping, if it is known; the groups' norms
        are then brought back to before clipping, too. Raises RuntimeError if the optimizers have other parameters by now.
        """
        self._check_parameters()
        gradient_G, found = self.norms(self._gradient_norms())
        if scale is not None:
            gradient_G, found = gradient_G / scale, found / scale
        if total is not None:
            total = total.detach().to(found).reshape(())
            gradient_G = gradient_G * torch.where(found > 0, total / found, 1)
        norms: list[Tensor] = []
        for portion in self.portions:
            torch._foreach_copy_(self.before[portion], self.parameters[portion])
            norms += _foreach_norm(self.parameters[portion])
        parameter_G = self.norms(torch.stack(norms))[0]
        names = ["grad_norm/total"]
        names += [f"{kind}/{group}" for kind in ("grad_norm", "param_norm") for group in self.norms.names]
        vectors = [(found if total is None else total).reshape(1), gradient_G, parameter_G]
        if self.head is not None:
            norm_V = torch.linalg.vector_norm(self.head.get_parameter("weight").float(), dim=1)
            names += ["embedding_norm/mean", "embedding_norm/max"]
            vectors += [norm_V.mean().reshape(1), norm_V.max().reshape(1)]
        places, mean_H, max_H = self._hidden_norms()
        names += [f"{place}/mean" for place in places] + [f"{place}/max" for place in places]
        return names, [*vectors, mean_H, max_H]

    def _check_parameters(self) -> None:
        now = parameters_of(self.optimizers)
        if len(now) != len(self.parameters) or not all(map(operator.is_, now, self.parameters)):
            raise RuntimeError("the optimizer's parameters are no longer those that the monitor was made for")

    def _gradient_norms(self) -> Tensor:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if len(gradients) == len(self.parameters):
            return torch.stack(_foreach_norm(gradients))
        found = iter(_foreach_norm(gradients) if gradients else ())
        zero = torch.zeros((), device=self.device)
        return torch.stack([zero if p.grad is None else next(found) for p in self.parameters])

    def _hidden_norms(self) -> tuple[list[str], Tensor, Tensor]:
        """The places, and the mean and the largest norm at each (H,)."""
        if not self.hidden:
            nothing = torch.zeros(0, device=self.device)
            return [], nothing, nothing
        norms = [torch.cat(pieces) if len(pieces) > 1 else pieces[0] for pieces in self.hidden.values()]
        places, self.hidden, self.last_hidden = list(self.hidden), {}, (None, None)
        if len({len(norm_N) for norm_N in norms}) == 1:
            norm_HN = torch.stack(norms).float()
            return places, norm_HN.mean(1), norm_HN.amax(1)
        return places, torch.stack([n.float().mean() for n in norms]), torch.stack([n.float().amax() for n in norms])

    @torch.no_grad()
    def after_update(self) -> tuple[list[str], Tensor]:
        """Measure the change since :meth:`before_update`: names and values."""
        norms: list[Tensor] = []
        for portion in self.portions:
            torch._foreach_sub_(self.before[portion], self.parameters[portion])
            norms += _foreach_norm(self.before[portion])
        update_G = self.norms(torch.stack(norms))[0] / self.norms.root_count_G
        return [f"update_rms/{group}" for group in self.norms.names], update_G


class Ear:
    """A forward hook: passes on what a module takes in or gives out in training. A copy of it, in a copy of the model or in a
    file, does nothing."""

    def __init__(
        self, hear: Callable[[str, Any], None], place: str, guard: AbstractContextManager[Any], of_input: bool
    ) -> None:
        self.hear, self.place, self.guard, self.of_input = hear, place, guard, of_input

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], other: Any) -> None:
        """``other``: keyword arguments before the forward pass, the output after it."""
        if torch.compiler.is_compiling():  # a compiled model is left as it is
            return
        # Evaluation leaves no trace, nor does what gradient checkpointing computes again in the backward pass.
        if module.training and torch._C._current_graph_task_id() == -1:
            with self.guard:
                value = other if not self.of_input else arguments[0] if arguments else next(iter(other.values()), None)
                self.hear(self.place, value)

    def __reduce__(self) -> Any:
        return _deaf, ()


def _deaf() -> Callable[..., None]:
    return _nothing


def _nothing(*_: Any) -> None:
    """The hook of a copy."""


def parameters_of(optimizers: Sequence[torch.optim.Optimizer]) -> list[nn.Parameter]:
    """The parameters that optimizers update, in their order."""
    return [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]


def _foreach_norm(tensors: Sequence[Tensor]) -> list[Tensor]:
    """L2 norms (), in float32 for narrower types and as wide as the tensors otherwise."""
    wide = torch.float32 if tensors[0].itemsize < 4 else None
    return norms_of(tensors, dtype=wide)


def _check(parameters: Sequence[Tensor]) -> None:
    if not parameters:
        raise ValueError("the optimizer has no parameters")
    if any(isinstance(p, DTensor) for p in parameters):
        raise ValueError("sharded parameters (FSDP, tensor parallelism) cannot be monitored; train_lm.py measures them")
    devices = sorted({str(p.device) for p in parameters})
    if len(devices) > 1:
        raise ValueError(f"parameters on several devices cannot be monitored: {', '.join(devices)}")
