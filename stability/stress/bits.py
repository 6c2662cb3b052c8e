"""Stresses of single bits, as faulty hardware flips them."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from common.registry import without_effect
from common.section import Text

from .base import STRESSES, Setup, Stress, When
from .optimizer import moments_problems
from .tensors import Pattern, names_matching, place_of, refuse_sharded


@STRESSES.register("flip_bit")
class FlipBit(Stress):
    """Flips one bit of one number, drawn anew at each of its steps and the same on every rank."""

    @dataclass(frozen=True, kw_only=True)
    class Options(When):
        what: Literal["parameter", "gradient", "moment"]
        """Where the number is."""
        bit: Annotated[int, Field(ge=0, le=31)] = 30
        """The bit of a float32: 0 to 22 the fraction, 23 to 30 the exponent, 31 the sign."""
        parameter: Pattern | None = None
        """Regular expression as for scale_weights; null: any parameter."""
        moment: Text | None = None
        """Of a moment, where it is required: its name, for adamw exp_avg or exp_avg_sq."""

    @classmethod
    def problems(cls, options: Any, setup: Setup) -> Iterator[tuple[str, str]]:
        """Also a moment that is not named, or that the optimizer does not have."""
        yield from super().problems(options, setup)
        yield from without_effect(options, "what", {"moment": ("moment",)})
        if options.what == "moment":
            yield from moments_problems(cls.kind, options, setup)
            if setup.moments and options.moment not in setup.moments:
                has = f"the optimizer has {', '.join(setup.moments)}"
                yield (
                    "moment",
                    f"is required with what=moment; {has}" if options.moment is None else f"{options.moment}: {has}",
                )

    def check(self, model: nn.Module, optimizer: Optimizer) -> None:
        refuse_sharded(model, self)
        parameters = dict(model.named_parameters())
        names = names_matching(model, self.options.parameter or "", self, "parameter")
        self._shapes = {name: tuple(parameters[name].shape) for name in names}
        if wrong := [name for name in names if parameters[name].dtype != torch.float32]:
            self.refuse("kind", f"flip_bit acts on float32 only, and {wrong[0]} is {parameters[wrong[0]].dtype}")

    def _drawn(self, step: int) -> tuple[str, tuple[int, ...]]:
        """Name of the parameter and position of the element: every element of all of them is as probable."""
        ends = list(accumulate(map(math.prod, self._shapes.values())))
        index = int(self.random(step).integers(ends[-1]))
        number = bisect_right(ends, index)
        name = list(self._shapes)[number]
        return name, place_of(index - (ends[number - 1] if number else 0), self._shapes[name])

    def state(self, step: int, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
        name, place = self._drawn(step)
        parameter = parameters[name]
        if self.options.what == "parameter":
            self._flip(parameter, place)
        elif self.options.what == "gradient":
            self._target = parameter  # whose gradient is still to come
        else:
            slots = optimizer.state.get(parameter, {})
            if self.options.moment in slots:
                self._flip(slots[self.options.moment], place)

    def gradients(self, step: int, gradients: Sequence[Tensor]) -> None:
        if self.options.what == "gradient":
            gradient = self._target.grad
            del self._target  # keeps no model in memory
            if gradient is not None:
                self._flip(gradient, self._drawn(step)[1])

    def _flip(self, tensor: Tensor, place: tuple[int, ...]) -> None:
        """A view as int32 changes the number in place; integers as indices do not wait for the device."""
        mask = 1 << self.options.bit if self.options.bit < 31 else -(1 << 31)
        tensor.detach().view(torch.int32)[place].bitwise_xor_(mask)

    def describe(self, step: int, batch: int) -> str:
        name, place = self._drawn(step)
        of = {"parameter": "", "gradient": "the gradient of ", "moment": f"{self.options.moment} of "}
        return f"bit {self.options.bit} of {of[self.options.what]}{name}{list(place)} flipped"
