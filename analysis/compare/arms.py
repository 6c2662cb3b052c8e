"""Which models are compared: runs gathered into arms over seeds, single checkpoints, and guests from elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.curves.families import stem, without_seed
from common.errors import InputError
from record.finished import checkpoints_of, read_config, resolve_checkpoint, run_directory, unique_labels

from .differing import differing_words

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
    """The models behind ``paths`` as arms, in the order of their first members.

    Runs whose configurations differ in nothing but the seed, and in what no training depends on (where they are written, which
    checkpoints stay), form one arm, if they are taken at the same step and no two share a seed. A checkpoint that belongs to
    no run, of any transformers causal LM, is an arm of its own.
    Raises :class:`InputError` with all that is wrong with the paths.
    """
    found: list[tuple[Path, Path | None, dict[str, Any]]] = []
    problems: list[str] = []
    for path in paths:
        try:
            checkpoint = resolve_checkpoint(path)
        except InputError as error:
            problems.extend(error.problems)
            continue
        try:
            run: Path | None = run_directory(checkpoint)
        except InputError:
            run = None
        try:
            found.append((checkpoint, run, read_config(run) if run else {}))
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(*problems)
    groups: list[tuple[Any, list[int]]] = []
    for index, (checkpoint, run, config) in enumerate(found):
        key = (without_seed(config), checkpoint.name) if run else (None, index)
        seeds = [found[other][2].get("seed") for group, others in groups if group == key for other in others]
        if run and seeds and config.get("seed") not in seeds:
            next(others for group, others in groups if group == key).append(index)
        else:
            groups.append((key, [index]))
    names = [_name(*found[index][:2]) for index in range(len(found))]
    labels = unique_labels(names, paths)
    stems = [stem([names[index] for index in group]) for _, group in groups]
    arm_labels = unique_labels(stems, [paths[group[0]] for _, group in groups])
    return [
        Arm(label, tuple(Member(labels[i], found[i][0], found[i][1], found[i][2].get("seed")) for i in group))
        for label, (_, group) in zip(arm_labels, groups, strict=True)
    ]


def compared_arms(baseline: Sequence[str], candidates: Sequence[str]) -> list[Arm]:
    """The arms behind all paths, that of ``baseline`` first.

    Raises :class:`InputError` as :func:`find_arms` does, and unless ``baseline`` names one arm, and all that is given of it.
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
    """A line with the keys in which the configurations of the arms' first runs differ; none if fewer than two have a run."""
    trained = [arm for arm in arms if arm.members[0].run and not arm.members[0].untrained]
    if len(trained) < 2:
        return []
    configs = [{**read_config(run), "seed": None} for arm in trained if (run := arm.members[0].run)]
    return [differing_words(configs, f"arms {', '.join(arm.label for arm in trained)}")]


def untrained_arm(arm: Arm, others: Sequence[Arm] = ()) -> Arm:
    """The first model of ``arm`` before training: what the initialisation alone predicts. Its label is none of ``others``."""
    taken = {label for other in others for label in (other.label, *(member.label for member in other.members))}
    label = UNTRAINED
    for number in itertools.count(2):
        if label not in taken:
            break
        label = f"{UNTRAINED} ({number})"
    first = arm.members[0]
    return Arm(label, (Member(label, first.checkpoint, first.run, first.seed, untrained=True),))


def checkpoints_up_to(member: Member) -> list[tuple[int, Path]]:
    """Step and directory of the complete checkpoints of the member's run up to its own, by step.

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
    """The model, in evaluation mode and on a GPU if there is one. Raises :class:`InputError` if it cannot be loaded."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    from model import SwapHeadConfig, load_model, new_model

    logging.disable_progress_bar()  # of the weights: the one worth seeing is that of the contexts
    try:
        if member.untrained:
            config = AutoConfig.from_pretrained(member.checkpoint, local_files_only=True, trust_remote_code=False)
            model: Any = (
                new_model(config, member.seed or 0)
                if isinstance(config, SwapHeadConfig)
                else _fresh(AutoModelForCausalLM, config, member.seed or 0)
            ).eval()
        else:
            model = load_model(member.checkpoint)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{member.checkpoint} cannot be loaded as a causal language model: {reason}") from error
    return model.float().to("cuda" if torch.cuda.is_available() else "cpu")


def _fresh(auto: Any, config: Any, seed: int) -> Any:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return auto.from_config(config, trust_remote_code=False)


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
        raise InputError(problem)  # transformers makes up an empty one where a folder has no tokenizer's files
    return tokenizer


def _name(checkpoint: Path, run: Path | None) -> str:
    return run.name if run else checkpoint.resolve().name


class Diverged(InputError):
    """A model's logits are not finite: a result of its training, where all of its checkpoints are asked."""

    def __init__(self, label: str) -> None:
        super().__init__(f"{label}: the model's logits are not finite; it has diverged: name an earlier checkpoint")
