"""Stresses: deliberate faults, pure functions of their options, the seed and the step, so that a replay repeats them.

A new stress is a class in one file, here or in a plug-in: it registers with :data:`STRESSES` and overrides what it
disturbs. Shapes: R rows of this rank, T positions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NoReturn

import numpy as np
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from common.errors import InputError
from common.registry import Registry, checked_options
from common.section import MOST, Choice
from common.seeds import stream_seed

if TYPE_CHECKING:
    from data.store import TokenStore

STRESSES = Registry("stress")
SHORTLY = 8
"""Steps after a stress in which what happens may be its effect."""


@dataclass(frozen=True)
class When:
    """The keys of every stress: when it acts."""

    step: Annotated[int, Field(ge=1, le=MOST)]
    """First step at which the fault acts."""
    steps: Annotated[int, Field(ge=1, le=MOST)] | None = 1
    """Number of steps it lasts; null: to the end of the run."""


@dataclass(frozen=True)
class Setup:
    """What the options of a stress are checked against."""

    steps: int
    """Of the run."""
    batch_size: int
    """Sequences per step, over all ranks."""
    sequence_length: int
    moments: tuple[str, ...]
    """Names of the optimizer's per-parameter state tensors."""


@dataclass(frozen=True)
class Place:
    """What a stress knows of the run: its index among the stresses, for random streams, and the tokens."""

    number: int
    seed: int
    store: "TokenStore"
    sequence_length: int

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary."""
        return self.store.vocab_size


class Stress:
    """Base of all stresses. Methods do nothing by default; random numbers must be drawn from (seed, number, step)."""

    kind: ClassVar[str]
    counts: ClassVar[Literal["steps", "batches"]] = "steps"
    """What ``step`` counts: optimizer steps, or batches in order, so that skipping a batch skips its fault."""
    Options: Any = When

    def __init__(self, options: Any, place: Place) -> None:
        self.options, self.place = options, place

    @classmethod
    def problems(cls, options: Any, setup: Setup) -> Iterator[tuple[str, str]]:
        """Problems with the options in such a run, as (key, text)."""
        if options.step > setup.steps:
            yield "step", f"{options.step} comes after the last step, train.steps={setup.steps}"

    def acts(self, step: int, batch: int) -> bool:
        """Whether the fault acts at ``step``, which draws ``batch``."""
        now, o = batch if self.counts == "batches" else step, self.options
        return bool(o.step <= now and (o.steps is None or now < o.step + o.steps))

    def check(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Raise InputError (:meth:`refuse`) if it cannot act on this model or optimizer, both as prepared for the launch. Called
        on every rank for every newly built model, before :meth:`attach`."""

    def refuse(self, key: str, text: str) -> NoReturn:
        """Raise InputError about one of its options."""
        raise InputError(f"stress.{self.place.number}.{key}: {text}")

    def random(self, *position: int) -> np.random.Generator:
        """Random numbers that are its own and the same on every rank, drawn from the seed and ``position``: the step or batch,
        and the row if each has its own."""
        return np.random.default_rng(stream_seed(self.place.seed, "stress", self.place.number, *position))

    def batch(self, batch: int, x_RT: Tensor, y_RT: Tensor, *, first_row: int) -> None:
        """Disturb inputs and targets in place. ``first_row`` is the index of this rank's first row in the batch."""

    def reshape(self, batch: int, x_RT: Tensor, y_RT: Tensor) -> tuple[Tensor, Tensor]:
        """The batch in another shape, after all stresses have disturbed it; at least one row on each rank."""
        return x_RT, y_RT

    def lose(self, batch: int, y_RT: Tensor, *, first_row: int, batch_rows: int) -> None:
        """Ignore targets, in place, after they have been counted: the loss is still divided by the number that there was, and
        the share of those ignored is missing in the gradient. ``batch_rows``: rows over all ranks."""

    def rate(self, step: int) -> float:
        """Factor on the learning rate."""
        return 1.0

    def settings(self, step: int, group: Mapping[str, Any]) -> Mapping[str, Any]:
        """Other hyperparameters of the optimizer's parameter group ``group`` (betas, eps, ...) for this step alone."""
        return {}

    def state(self, step: int, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
        """Disturb parameters or the optimizer's state in place, before the forward pass, without gradients and without waiting
        for the device. Parameters come by name, those of a tied weight once; under FSDP2 they are DTensors."""

    def gradients(self, step: int, gradients: Sequence[Tensor]) -> None:
        """Disturb the gradients in place, before they are measured and clipped. On the device, without a sync.

        They come in the order of ``named_parameters()``, without the missing ones, and are already summed over ranks:
        random numbers must be the same on every rank.
        """

    def attach(self, model: nn.Module, acting: Callable[[], bool]) -> None:
        """Add hooks to a newly built model; they act in training mode while ``acting()``. With ``prepend=True`` a hook runs
        before telemetry's, which then measures its effect."""

    def describe(self, step: int, batch: int) -> str:
        """Describe in words what it does at a step at which it acts."""
        return f"{self.kind} with {self.options}"


def make_stresses(choices: Sequence[Choice], *, seed: int, store: "TokenStore", sequence_length: int) -> list[Stress]:
    """The stresses of a checked configuration, in its order. Raises InputError for a text that a stress cannot read."""
    made = []
    for number, choice in enumerate(choices):
        cls = STRESSES[choice.kind]
        made.append(cls(checked_options(cls, choice.options), Place(number, seed, store, sequence_length)))
    return made


def check_stresses(stresses: Sequence[Stress], model: nn.Module, optimizer: Optimizer) -> None:
    """Let each stress look at the model and the optimizer that it will act on. Raises InputError if it cannot."""
    for stress in stresses:
        stress.check(model, optimizer)


def acting_kinds(stresses: Sequence[Stress], step: int, batch: int) -> list[str]:
    """The kinds of the stresses that act at ``step``, which draws ``batch``."""
    return [stress.kind for stress in stresses if stress.acts(step, batch)]


def describe_stresses(stresses: Sequence[Stress], step: int, batch: int) -> list[str]:
    """One line for each stress that acts at ``step``, which draws ``batch``."""
    return [stress.describe(step, batch) for stress in stresses if stress.acts(step, batch)]
