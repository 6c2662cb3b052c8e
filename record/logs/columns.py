"""Which column of a log is the step, the loss, the gradient norm, the learning rate and the validation loss: one table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast, get_args

from common.errors import InputError
from record.metrics import SignalKind

from .base import Rows


@dataclass(frozen=True)
class Role:
    """What a column is in training."""

    key: str
    """In ``--columns KEY=COLUMN``."""
    title: str
    metric: str
    """The metric of this project that is the same (record/metrics.py): it decides by which rule the column is judged."""
    names: tuple[str, ...]
    """Known names, as :func:`plain` writes them, the most telling first."""
    beginnings: tuple[str, ...] = ()
    """What a name may begin with, if it is none of the known ones."""


_LOSSES = (
    "loss nll", "loss", "lm loss", "ce loss", "cross entropy loss", "crossentropy loss", "nll loss", "nll", "cross entropy", "ce",
    "language cross entropy", "language modeling loss", "lm loss value", "total loss", "loss total", "loss train total",
    "loss train", "loss ce", "loss lm", "loss mean", "mean loss", "avg loss", "average loss", "global avg loss",
    "loss global avg loss", "loss metrics global avg loss", "loss avg", "reduced train loss", "loss step", "step loss",
    "batch loss", "loss per token", "loss epoch", "lm loss training lm loss", "trl", "train", "value",
)  # fmt: skip
_VALIDATION = "val"

ROLES = (
    Role("step", "step", "step", (
        "global step", "step", "iteration", "iter", "iteration step", "steps", "iterations", "global steps", "update", "updates",
        "num updates", "num steps", "n iter", "time batch", "batch", "it", "s", "_step",
    )),
    Role("loss", "loss", "loss/nll", _LOSSES),
    Role("grad_norm", "gradient norm", "grad_norm/total", (
        "grad norm total", "grad norm", "total grad norm", "global grad norm", "grad norm global", "gradient norm",
        "total gradient norm", "global gradient norm", "grad total norm", "gradnorm", "gnorm", "grad l2 norm",
        "l2 norm grad global", "grad global norm", "grad norm before clip", "grad norm before clipping", "grad norm grad norm",
        "grad 2 0 norm total", "grad 2 norm total", "norm grad", "global norm", "norm", "grad norm all",
    )),
    Role("lr", "learning rate", "lr", (
        "lr", "learning rate", "learningrate", "lr group 0", "lr group0", "learning rate group0", "learning rate group 0",
        "current lr", "last lr", "learning rate learning rate",
    ), ("lr ", "learning rate ")),
    Role("val_loss", "validation loss", "validation/nll", (
        *(f"{_VALIDATION} {name}" for name in _LOSSES if name != "value"), "loss val", "loss eval", "loss test",
        "loss validation", "lm loss validation", "lm loss validation lm loss validation", "tel", "validation", "val",
    )),
)  # fmt: skip
BY_KEY = {role.key: role for role in ROLES}
SIGNALS = ("loss", "grad_norm")
"""Roles in which spikes are looked for."""

_NO_SIGNAL = frozenset((
    "time", "seconds", "second", "sec", "secs", "ms", "duration", "elapsed", "runtime", "timestamp", "wall", "eta", "epoch",
    "epochs", "mfu", "flops", "tflops", "tokens", "token", "tok", "tps", "samples", "sample", "examples", "memory", "mem", "gib",
    "gb", "usd", "cost", "throughput", "rate", "lr", "step", "steps", "iter", "iteration", "batch", "batches", "size",
))  # fmt: skip
"""Words in the names of columns that do not measure the model in training."""
_LEADING = (
    "train",
    "training",
    "trainer",
    "optim",
    "optimizer",
    "metrics",
    "metric",
    "stats",
    "scalars",
    "logs",
    "log",
)
_OF_VALIDATION = ("eval", "evaluation", "valid", "validation", "val", "test", "dev")
_FEWEST = 0.5
"""A column with fewer values than this share of those of another of its role (a mean at the end, one an epoch) comes after."""


@cache
def plain(name: str) -> str:
    """A name without its style: lower-case words, "train" and the like in front left out, "eval" and the like as "val".

    train/CE loss, trainCeLoss and train_ce_loss are all "ce loss"; eval_loss is "val loss".
    """
    if name.startswith("_"):
        return f"_{plain(name.lstrip('_'))}"
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    parts = re.findall(r"[a-z0-9]+", words.lower())
    while len(parts) > 1 and parts[0] in _LEADING:
        parts = parts[1:]
    if len(parts) > 1 and parts[0] in _OF_VALIDATION:
        parts = [_VALIDATION, *parts[1:]]
    return " ".join(parts)


@cache
def role_of(name: str) -> Role | None:
    """The role that a column of this name can have, the step's aside; None for an unknown name."""
    return next((role for role in ROLES[1:] if _rank(role, name) is not None), None)


def measures_model(name: str) -> bool:
    """Whether a column may tell something about the model: no time, throughput or counter."""
    return not _NO_SIGNAL & set(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()))


def find_roles(rows: Rows, given: Mapping[str, str]) -> dict[str, str]:
    """The column of each role that the rows have, by the role's key; ``given`` comes first where the rows have that column."""
    found: dict[str, str] = {key: column for key, column in given.items() if column in rows.columns}
    for role in ROLES:
        if role.key not in found and (column := _column(role, rows, set(found.values()))) is not None:
            found[role.key] = column
    return {role.key: found[role.key] for role in ROLES if role.key in found}


def parse_columns(given: Sequence[str]) -> dict[str, str]:
    """``KEY=COLUMN`` arguments by role. Raises :class:`InputError` for what is none."""
    chosen: dict[str, str] = {}
    for argument in given:
        key, equals, column = argument.partition("=")
        if key not in BY_KEY or not equals or not column:
            known = ", ".join(BY_KEY)
            raise InputError(
                f"--columns {argument}: give ROLE=COLUMN, for example loss=train/lm_loss, with ROLE one of {known}"
            )
        chosen[key] = column
    return chosen


def parse_kinds(given: Sequence[str]) -> dict[str, SignalKind]:
    """``KIND=COLUMN`` arguments by column. Raises :class:`InputError` for what is none."""
    chosen: dict[str, SignalKind] = {}
    for argument in given:
        kind, equals, column = argument.partition("=")
        if kind not in get_args(SignalKind) or not equals or not column:
            known = ", ".join(get_args(SignalKind))
            raise InputError(
                f"--kinds {argument}: give KIND=COLUMN, for example norm=grad_layer_3, with KIND one of {known}"
            )
        chosen[column] = cast("SignalKind", kind)
    return chosen


def _column(role: Role, rows: Rows, taken: set[str]) -> str | None:
    known = [(rank, -len(rows.columns[name][0]), name) for rank, name in _candidates(role, rows, taken)]
    most = max((-count for _, count, _ in known), default=0)
    often = [candidate for candidate in known if -candidate[1] >= _FEWEST * most]
    return min(often, key=lambda candidate: candidate[:2])[2] if often else None


def _candidates(role: Role, rows: Rows, taken: set[str]) -> Iterator[tuple[int, str]]:
    for name in rows.columns:
        if name not in taken and (rank := _rank(role, name)) is not None:
            yield rank, name


def _rank(role: Role, name: str) -> int | None:
    """The place of a name among the known ones of a role; None for a name that is none."""
    words = plain(name)
    if words in role.names:
        return role.names.index(words)
    if words.startswith(role.beginnings) or (
        role.key == "val_loss" and words.startswith(f"{_VALIDATION} ") and words.endswith(" loss")
    ):
        return len(role.names)
    return None
