"""Which models are compared: runs grouped into arms over seeds, single checkpoints, and models from elsewhere."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.curves.families import stem, without_seed
from common.errors import InputError
from record.finished import checkpoints_of, read_config, resolve_checkpoint, run_directory, unique_labels

from .differing import differing_words
from .statistics import Floats, finite_mean

UNTRAINED = "untrained"
"""The label of the untrained model, if no run has that name."""


@dataclass(frozen=True)
class Member:
    """One model: its label, its checkpoint, the run it belongs to and that run's seed, if any."""

    label: str
    checkpoint: Path
    run: Path | None
    seed: int | None
    untrained: bool = False
    """The checkpoint's configuration with fresh weights instead of its own."""


@dataclass(frozen=True)
class Arm:
    """Models that differ in nothing but the seed."""

    label: str
    members: tuple[Member, ...]

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """The seed of each member."""
        return tuple(member.seed for member in self.members)


def find_arms(paths: Sequence[str]) -> list[Arm]:
    """The models at ``paths`` as arms, in the order of their first members.

    Runs whose configurations differ only in the seed, and in what does not affect training (output folder, which checkpoints
    are kept), form one arm, if they are taken at the same step and no two share a seed. A checkpoint that belongs to no run,
    of any transformers causal LM, is an arm of its own.
    Raises :class:`InputError` with all problems of the paths.
    """
    found: list[tuple[Path, Path | None, dict[str, Any]]] = []
    problems: list[str] = []
    for path in paths:
        run: Path | None = None
        try:
            checkpoint = resolve_checkpoint(path)
            with contextlib.suppress(InputError):
                run = run_directory(checkpoint)
            found.append((checkpoint, run, read_config(run) if run else {}))
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(*problems)
    groups: list[tuple[Any, list[int]]] = []
    for index, (checkpoint, run, config) in enumerate(found):
        key = (without_seed(config), checkpoint.name) if run else (None, index)
        alike = [others for group, others in groups if group == key]
        if alike and config.get("seed") not in [found[other][2].get("seed") for others in alike for other in others]:
            alike[0].append(index)
        else:
            groups.append((key, [index]))
    names = [run.name if run else checkpoint.resolve().name for checkpoint, run, _ in found]
    labels = unique_labels(names, paths)
    stems = [stem([names[index] for index in group]) for _, group in groups]
    arm_labels = unique_labels(stems, [paths[group[0]] for _, group in groups])
    return [
        Arm(label, tuple(Member(labels[i], found[i][0], found[i][1], found[i][2].get("seed")) for i in group))
        for label, (_, group) in zip(arm_labels, groups, strict=True)
    ]


def compared_arms(baseline: Sequence[str], candidates: Sequence[str]) -> list[Arm]:
    """The arms at all paths, the baseline first.

    Raises :class:`InputError` as :func:`find_arms` does, and unless ``baseline`` is exactly one arm.
    """
    arms = find_arms([*baseline, *candidates])
    own = find_arms(baseline)
    if len(own) > 1:
        raise InputError(
            f"--baseline names several arms ({', '.join(arm.label for arm in own)}); give runs of one, which differ in "
            "nothing but the seed"
        )
    if len(arms[0].members) > len(baseline):
        raise InputError(
            f"--candidate: {arms[0].members[len(baseline)].checkpoint} differs from the baseline in nothing but the seed; "
            "give it with --baseline"
        )
    return arms


def arms_differ_in(arms: Sequence[Arm]) -> list[str]:
    """A sentence naming the keys in which the configurations of the arms' first runs differ, if two of them have a run."""
    runs = {arm.label: arm.members[0].run for arm in arms if not arm.members[0].untrained}
    configs = {label: {**read_config(run), "seed": None} for label, run in runs.items() if run}
    return [differing_words(list(configs.values()), f"arms {', '.join(configs)}")] if len(configs) > 1 else []


def untrained_arm(arm: Arm, others: Sequence[Arm] = ()) -> Arm:
    """The first model of ``arm`` as it was initialised, under a label that none of ``others`` has."""
    taken = {label for other in others for label in (other.label, *(member.label for member in other.members))}
    labels = itertools.chain([UNTRAINED], (f"{UNTRAINED} ({number})" for number in itertools.count(2)))
    label = next(label for label in labels if label not in taken)
    first = arm.members[0]
    return Arm(label, (Member(label, first.checkpoint, first.run, first.seed, untrained=True),))


def checkpoints_up_to(member: Member) -> list[tuple[int, Path]]:
    """Step and directory of the complete checkpoints of the member's run, by step, up to the member's own.

    Raises :class:`InputError` if the member belongs to no run, or its checkpoint is not one that the run wrote.
    """
    if member.run is None:
        raise InputError(f"{member.checkpoint} belongs to no run, and has nothing before it; give a run")
    found = checkpoints_of(member.run)
    for number, (_, path) in enumerate(found, start=1):
        if path.samefile(member.checkpoint):
            return found[:number]
    raise InputError(
        f"{member.checkpoint} is not named step_<number>, so that it cannot be placed in its run; rename it"
    )


def load_member(member: Member) -> Any:
    """The model in evaluation mode, on a GPU if there is one. Raises :class:`InputError` if it cannot be loaded."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    from model import SwapHeadConfig, new_model
    from record.whole import load_checkpoint

    logging.disable_progress_bar()  # it would interrupt the bar of the contexts
    try:
        if not member.untrained:
            model: Any = load_checkpoint(member.checkpoint)
        else:
            config = AutoConfig.from_pretrained(member.checkpoint, local_files_only=True, trust_remote_code=False)
            if isinstance(config, SwapHeadConfig):
                model = new_model(config, member.seed or 0).eval()
            else:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(member.seed or 0)
                    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).eval()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{member.checkpoint} cannot be loaded as a causal language model: {reason}") from error
    return model.float().to("cuda" if torch.cuda.is_available() else "cpu")


def check_positions(model: Any, label: str, longest: int) -> None:
    """Raise :class:`InputError` if texts of ``longest`` tokens do not fit into the model's positions."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and positions < longest:
        raise InputError(
            f"{label}: the model has {positions} positions and the texts take {longest} of its tokens; compare it on a run "
            "with a shorter data.sequence_length"
        )


def load_tokenizer(member: Member) -> Any:
    """The tokenizer in the member's checkpoint. Raises :class:`InputError` if there is none."""
    from transformers import AutoTokenizer

    problem = f"{member.checkpoint} has no tokenizer that can be loaded; save the tokenizer beside the model"
    try:
        tokenizer = AutoTokenizer.from_pretrained(member.checkpoint, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(problem) from error
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_ids):
        raise InputError(problem)  # what transformers returns for a folder without a tokenizer's files
    return tokenizer


class Diverged(InputError):
    """A model's logits are not finite. Where every checkpoint of a run is evaluated this is a result, not a mistake."""

    def __init__(self, label: str) -> None:
        super().__init__(f"{label}: the model's logits are not finite; it has diverged: name an earlier checkpoint")


def diverged_line(label: str, step: int | None, tokens: int | None) -> str:
    """What is printed about a checkpoint that has diverged; a guest has no step."""
    at = "" if pd.isna(step) else f" step {step}"
    at += "" if pd.isna(tokens) else f" ({tokens:,} tokens)"
    return f"{label}{at} has diverged: its logits are not finite; it has no values"


def member_values(arm: Arm, value_of: Callable[[Member], Floats], baseline: Arm | None = None) -> Floats:
    """(members, ...): a value of each member or, with ``baseline``, its difference from the baseline's member of the same seed.

    A member without a counterpart is compared with the baseline's mean; its intervals then leave out how the baseline varies
    between seeds.
    """
    value_SX = np.stack([value_of(member) for member in arm.members])
    if baseline is None:
        return value_SX
    base_SX = np.stack([value_of(member) for member in baseline.members])
    own = {seed: base_X for seed, base_X in zip(baseline.seeds, base_SX, strict=True) if seed is not None}
    mean_X = finite_mean(base_SX)
    return value_SX - np.stack([mean_X if seed is None else own.get(seed, mean_X) for seed in arm.seeds])
