"""The models of a suite whose checkpoints are measured: of every arm the calm runs, at one learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from analysis.compare.arms import Arm, Member, find_arms
from common.errors import InputError, note
from record.finished import checkpoints_of, is_file, unique_labels
from record.suite import PLAN_FILE

from .compare import study
from .runs import Comparison, find_runs


def arms_at(paths: Sequence[str]) -> list[Arm]:
    """The arms at ``paths``, each a run, a checkpoint or a suite's directory, which stands for all of its arms.

    Of a suite's arms the runs of the calm scenario are taken, at the arm's own rate; where it has several, at that with the
    lowest mean final NLL over the seeds. Raises :class:`InputError` as :func:`find_arms` does, and for a suite without a
    checkpoint.
    """
    arms: list[Arm] = []
    for path in (path for path in paths if is_file(Path(path) / PLAN_FILE)):
        arms += _arms_of(find_runs([path]), path)
    if others := [path for path in paths if not is_file(Path(path) / PLAN_FILE)]:
        arms += find_arms(others)
    labels = unique_labels([arm.label for arm in arms], [f"{arm.members[0].run} and others" for arm in arms])
    members = [member for arm in arms for member in arm.members]
    names = iter(unique_labels([member.label for member in members], [member.checkpoint for member in members]))
    return [
        Arm(label, tuple(replace(member, label=next(names)) for member in arm.members))
        for label, arm in zip(labels, arms, strict=True)
    ]


def _arms_of(comparison: Comparison, path: str) -> list[Arm]:
    """The arms with a run that has a checkpoint, in the plan's order, the baseline first."""
    calm = {cell: run for cell, run in comparison.runs.items() if cell.scenario == comparison.calm}
    rates = {arm: comparison.rates(arm, comparison.calm) for arm in comparison.arms}
    if any(len(own) > 1 for own in rates.values()):
        found = study(replace(comparison, runs=calm, unbegun={}), rules=())
        rates = {arm: [found.rate_of(arm, comparison.calm, None)] for arm in comparison.arms}
    arms = []
    for arm in comparison.arms:
        own = {cell.seed: run for cell, run in calm.items() if cell.arm == arm and cell.rate in rates[arm]}
        last = {seed: kept[-1] for seed in sorted(own) if (kept := checkpoints_of(own[seed].path))}
        for seed, (step, _) in last.items():
            if step != (planned := own[seed].setting("train", "steps")):
                note(f"{own[seed].name} is measured at step {step} of {planned}, and compared with others as it is")
        members = tuple(Member(own[seed].path.name, path, own[seed].path, seed) for seed, (_, path) in last.items())
        arms += [Arm(arm, members)] if members else []
    if not arms:
        raise InputError(f"{path}: none of its calm runs has a checkpoint; checkpoint.keep says how many are kept")
    return arms
