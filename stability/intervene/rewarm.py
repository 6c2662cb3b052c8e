"""Warming the learning rate up again at given steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from common.section import MOST

from .base import INTERVENTIONS, Intervention


@INTERVENTIONS.register("rewarm")
class Rewarm(Intervention):
    """Lowers the learning rate to ``from_ratio`` of its schedule at each step of ``at``, and raises it linearly over ``steps``
    steps.

    For changes that are planned, such as a longer context or a model that is changed on the way. It is a function of the step
    alone, so it knows nothing of rewinds. Where two warm-ups overlap, the later one counts.
    """

    @dataclass(frozen=True)
    class Options:
        at: Annotated[list[Annotated[int, Field(ge=1, le=MOST)]], Field(min_length=1)]
        """Steps at which the rate is lowered."""
        steps: Annotated[int, Field(ge=1, le=MOST)]
        """Steps after which it is the schedule's again."""
        from_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
        """Factor on the rate at the steps of ``at``."""

    def notes(self, last: int) -> Iterator[str]:
        late = [at for at in self.options.at if at > last]
        over = [at for at in self.options.at if at + self.options.steps <= self.began + 1]
        for steps, why in (
            (over, f"which is over at step {self.began}, where it begins"),
            (late, f"and the run ends at step {last}"),
        ):
            if steps:
                yield f"was to act from step {', '.join(map(str, steps))} on, {why}"

    def rate(self, step: int) -> float:
        o = self.options
        since = min((step - at for at in o.at if at <= step), default=o.steps)
        return 1.0 if since >= o.steps else o.from_ratio + (1 - o.from_ratio) * since / o.steps
