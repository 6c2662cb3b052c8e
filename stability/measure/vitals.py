"""Check on the device, before the update, that everything it would use is finite, and name the tensors that are not.
Shapes: P parameters (tensors)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ranks.collectives import all_reduce, rank, world_size

from .norms import tensor_norms


class Vitals:
    """Remembers what was not finite when something first was not, without waiting for the device."""

    def __init__(self, names: Sequence[str], parameters: Sequence[Tensor], moments: Sequence[str]) -> None:
        """``moments``: names of the optimizer's per-parameter state tensors that an update uses."""
        self._names, self._parameters, self._moments = list(names), list(parameters), list(moments)
        self._device = parameters[0].device
        self._bad_P: dict[str, Tensor] = {}
        self._bad_loss = torch.zeros((), device=self._device)

    @torch.no_grad()
    def look(
        self,
        alive: Tensor,
        local_loss: Tensor,
        gradient_P: Tensor | None,
        parameter_P: Tensor,
        optimizer: torch.optim.Optimizer,
        sound: Tensor,
        skipped: Tensor | None = None,
    ) -> Tensor:
        """Whether everything is finite (a boolean scalar, equal on all ranks).

        ``alive`` is 1 while everything was; later steps are not remembered. ``local_loss`` is that of this rank's tokens.
        ``gradient_P`` and ``parameter_P`` are norms; ``gradient_P`` is None if non-finite gradients are allowed. ``sound``
        is what this rank knows already. In a step that an intervention has ``skipped``, only parameters and moments count: its
        loss and gradient are not used.
        """
        if skipped is not None:
            sound, local_loss = sound | skipped, torch.where(skipped, 0, local_loss)
            gradient_P = None if gradient_P is None else torch.where(skipped, 0, gradient_P)
        norms = self._state_norms(parameter_P, optimizer)
        if gradient_P is not None:
            norms["gradient"] = gradient_P
        first = alive.isfinite()
        bad = (~sound).float()
        for kind, norm_P in norms.items():
            bad_P = ~norm_P.isfinite()
            bad = torch.maximum(bad, bad_P.any().float())
            self._bad_P[kind] = self._bad_P.get(kind, torch.zeros_like(bad_P)) | (bad_P & first)
        self._bad_loss = torch.maximum(self._bad_loss, (~local_loss.isfinite() & first).float())
        # Each rank may hold a copy of the state, of which only one is bad.
        all_reduce(bad, "max")
        return bad == 0

    @torch.no_grad()
    def state_is_finite(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether parameters and moments are finite on all ranks, before they are saved. Waits for the device."""
        norms = self._state_norms(tensor_norms(self._parameters), optimizer)
        self._bad_P = {kind: ~norm_P.isfinite() for kind, norm_P in norms.items()}
        bad = torch.stack([bad_P.any() for bad_P in self._bad_P.values()]).any().float()
        all_reduce(bad, "max")
        return bad.item() == 0

    def _state_norms(self, parameter_P: Tensor, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        norms = {"parameter": parameter_P}
        held = [i for i, p in enumerate(self._parameters) if p in optimizer.state]  # none before the first step
        for slot in self._moments if held else ():
            norm_H = tensor_norms([optimizer.state[self._parameters[i]][slot] for i in held])
            norm_of = dict(zip(held, norm_H.unbind(), strict=True))
            zero = norm_H.new_zeros(())  # indexing by a list would wait for the device
            norms[slot] = torch.stack([norm_of.get(i, zero) for i in range(len(self._parameters))])
        return norms

    def names(self) -> list[str]:
        """What was not finite on any rank, as "gradient of NAME". Waits for the device; all ranks call it."""
        found = []
        for kind, bad_P in self._bad_P.items():
            flags = bad_P.float()
            all_reduce(flags, "max")
            found += [f"{kind} of {name}" for name, bad in zip(self._names, flags.tolist(), strict=True) if bad]
        return found

    def ranks(self) -> list[int]:
        """The ranks whose own loss was not finite. Waits for the device; all ranks call it."""
        flags = torch.zeros(world_size(), device=self._device)
        flags[rank()] = self._bad_loss
        all_reduce(flags, "sum")
        return [r for r, flag in enumerate(flags.tolist()) if flag]
