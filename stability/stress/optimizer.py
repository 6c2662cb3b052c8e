"""Stresses of the optimizer's settings and of its state."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from common.registry import without_effect
from common.section import FLOAT32_MAX, Text

from .base import STRESSES, Setup, Stress, When
from .tensors import local, nearest

BETAS = ("beta1", "beta2")


@STRESSES.register("optimizer_settings")
class OptimizerSettings(Stress):
    """Sets other decays of the moments, or another eps."""

    @dataclass(frozen=True, kw_only=True)
    class Options(When):
        beta1: Annotated[float, Field(ge=0, lt=1)] | None = None
        """Decay of the running mean of gradients; null: as configured."""
        beta2: Annotated[float, Field(ge=0, lt=1)] | None = None
        """Decay of the running mean of squared gradients; null: as configured."""
        eps: Annotated[float, Field(gt=0, le=FLOAT32_MAX)] | None = None
        """Added to the root of the running mean of squares; null: as configured."""

    @classmethod
    def problems(cls, options: Any, setup: Setup) -> Iterator[tuple[str, str]]:
        """Also nothing to set."""
        yield from super().problems(options, setup)
        if options.beta1 is None and options.beta2 is None and options.eps is None:
            yield "kind", "optimizer_settings changes nothing; give beta1, beta2 or eps"

    def check(self, model: nn.Module, optimizer: Optimizer) -> None:
        for key in (*BETAS, "eps"):
            name = "betas" if key in BETAS else key
            if getattr(self.options, key) is not None and not all(name in group for group in optimizer.param_groups):
                self.refuse(key, f"the optimizer, {type(optimizer).__name__}, has no {key}; leave it out")

    def settings(self, step: int, group: Mapping[str, Any]) -> Mapping[str, Any]:
        o, changed = self.options, {}
        if o.beta1 is not None or o.beta2 is not None:
            beta1, beta2 = group["betas"]
            changed["betas"] = (beta1 if o.beta1 is None else o.beta1, beta2 if o.beta2 is None else o.beta2)
        return changed if o.eps is None else changed | {"eps": o.eps}

    def describe(self, step: int, batch: int) -> str:
        given = {key: getattr(self.options, key) for key in (*BETAS, "eps")}
        return ", ".join(f"{key} {value:g}" for key, value in given.items() if value is not None)


@STRESSES.register("stale_moments")
class StaleMoments(Stress):
    """Spoils the optimizer's moments: sets them to zero, or exchanges those of two parts of the model."""

    @dataclass(frozen=True, kw_only=True)
    class Options(When):
        what: Literal["reset", "swap"]
        """reset: all moments become 0; swap: two parts of equal shape exchange theirs."""
        step_count: Literal["keep", "reset"] = "keep"
        """Of a reset: whether the step count, from which the bias correction follows, stays or becomes 0."""
        between: Annotated[list[Text], Field(min_length=2, max_length=2)] | None = None
        """Of a swap: the names of two modules or parameters; null: the first and the last block."""

    @classmethod
    def problems(cls, options: Any, setup: Setup) -> Iterator[tuple[str, str]]:
        """Also an optimizer without moments, or before its first step."""
        yield from super().problems(options, setup)
        yield from moments_problems(cls.kind, options, setup)
        yield from without_effect(options, "what", {"step_count": ("reset",), "between": ("swap",)})

    def check(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._pairs = self._paired(dict(model.named_parameters())) if self.options.what == "swap" else []

    def _paired(self, parameters: Mapping[str, nn.Parameter]) -> list[tuple[str, str]]:
        """The names of the parameters that exchange their moments."""
        given = self.options.between
        one, other = given or self._first_and_last(list(parameters))
        first, second = (
            {name.removeprefix(part): tuple(p.shape) for name, p in parameters.items() if _within(name, part)}
            for part in (one, other)
        )
        for part, found in ((one, first), (other, second)):
            if not found:
                self.refuse("between", f"no parameter or module is called {part!r}; {nearest(part, parameters)}")
        if first != second or one == other:
            self.refuse("between", f"{one} and {other} are not two parts with parameters of equal names and shapes")
        return [(one + rest, other + rest) for rest in first]

    def _first_and_last(self, names: list[str]) -> list[str]:
        """The first and the last module of the longest list of modules."""
        found = [match for name in names if (match := re.match(r"(.+?\.)(\d+)\.", name))]
        lists = Counter(match[1] for match in found)
        prefix = max(lists, key=lambda one: lists[one], default="")
        numbers = sorted({int(match[2]) for match in found if match[1] == prefix})
        if len(numbers) < 2:
            self.refuse("between", "the model has no two blocks; name two modules or parameters of equal shape")
        return [f"{prefix}{numbers[0]}", f"{prefix}{numbers[-1]}"]

    def state(self, step: int, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
        if self.options.what == "reset":
            for slots in optimizer.state.values():
                for name, tensor in slots.items():
                    if isinstance(tensor, Tensor) and (name != "step" or self.options.step_count == "reset"):
                        local(tensor).zero_()
        for one, other in self._pairs:
            slots, others = (optimizer.state.get(parameters[name], {}) for name in (one, other))
            for name in (slots.keys() & others.keys()) - {"step"}:
                _exchange(local(slots[name]), local(others[name]))

    def describe(self, step: int, batch: int) -> str:
        o = self.options
        if o.what == "reset":
            return f"moments set to 0{' with their step count' if o.step_count == 'reset' else ''}"
        return f"moments of {' and '.join(o.between or ['the first', 'the last block'])} exchanged"


def moments_problems(kind: str, options: Any, setup: Setup) -> Iterator[tuple[str, str]]:
    """Problems of a stress of moments: an optimizer that has none, or has none yet."""
    if not setup.moments:
        yield "kind", f"{kind} needs an optimizer with moments, and this one declares none"
    elif options.step == 1:
        yield "step", "at step 1 there are no moments yet; from 2 on"


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _exchange(one: Tensor, other: Tensor) -> None:
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)
