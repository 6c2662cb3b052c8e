"""Values over training: which checkpoints of which runs are evaluated, means over runs, and their curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.compare.arms import Arm, Member, checkpoints_up_to, untrained_arm
from common.errors import InputError
from record.finished import checkpoint_state, read_config

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.show.style import ArmStyle


@dataclass(frozen=True)
class Point:
    """A model at one time of its training."""

    arm: str
    run: str
    """The label of the arm's member."""
    member: Member
    """With the checkpoint of that time, or untrained."""
    step: int | None
    """None if its checkpoint does not say."""
    tokens: int | None

    @property
    def columns(self) -> dict[str, Any]:
        """The columns by which a table identifies this point."""
        which: dict[str, Any] = {"arm": self.arm, "run": self.run, "seed": self.member.seed}
        return which | {"step": self.step, "tokens": self.tokens}


def points_of(arms: Sequence[Arm]) -> list[Point]:
    """What is asked, in the order of arms, members and tokens.

    Raises :class:`InputError` naming each model that belongs to no run and each checkpoint that does not say its tokens.
    """
    points: list[Point] = []
    problems: list[str] = []
    for arm in arms:
        for member in arm.members:
            try:
                checkpoints = checkpoints_up_to(member)
            except InputError as error:
                problems.extend(error.problems)
                continue
            assert member.run is not None, "it has checkpoints"
            if _starts_fresh(member.run):
                (before,) = untrained_arm(Arm(arm.label, (member,))).members
                points.append(Point(arm.label, member.label, before, step=0, tokens=0))
            for step, path in checkpoints:
                tokens = checkpoint_state(path).get("tokens")
                if type(tokens) is int:
                    points.append(Point(arm.label, member.label, replace(member, checkpoint=path), step, tokens))
                else:
                    problems.append(
                        f"{path / 'trainer_state.json'} has no whole number under 'tokens'; remove that checkpoint"
                    )
    if problems:
        raise InputError(*problems)
    return points


def _starts_fresh(run: Path) -> bool:
    """Whether the run began with weights drawn from its seed, and not with those of another checkpoint."""
    body = read_config(run).get("body")
    return not (isinstance(body, dict) and body.get("checkpoint"))


def mean_over_runs(rows: pd.DataFrame, key: str) -> pd.Series:
    """Of one arm's rows: the mean of ``key`` by tokens, where every one of its runs has a checkpoint.

    A mean over whichever runs have one would jump where a run comes in or drops out. NaN where one of them has diverged.
    """
    groups = rows.groupby("tokens")
    mean: pd.Series = groups[key].mean().mask(groups["diverged"].any())
    return mean[groups.size() == rows["run"].nunique()]


def draw_over_training(
    axes: Axes, rows: pd.DataFrame, key: str, style: ArmStyle, *, label: str | None, line: Any = None
) -> None:
    """An arm's ``key`` against tokens: a thin line for each run, a thick one for their mean; a gap where a run has diverged."""
    for _, run in rows.sort_values("tokens").groupby("run"):
        known = run[run[key].notna() | run["diverged"]]
        axes.plot(known["tokens"], known[key], color=style.colour, linewidth=0.6, alpha=0.55)
    mean = mean_over_runs(rows, key)
    mean = mean[mean.notna() | mean.index.isin(rows["tokens"][rows["diverged"]])]
    axes.plot(
        mean.index, mean, color=style.colour, linestyle=line or style.line, marker=style.marker, linewidth=1.6,
        markersize=3.5 if label else 2, label=label,
    )  # fmt: skip


def token_axis(axes: Axes, tokens: pd.Series) -> None:
    """A horizontal axis with room for the markers at all ``tokens``, the same in every panel."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    low, high = float(tokens.min()), float(tokens.max())
    margin = 0.03 * (high - low or 1.0)
    axes.set_xlim(low - margin, high + margin)
    axes.set_xlabel("tokens")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
