"""A suite file: what is run, and what is made of it afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, Field, model_validator

from common.errors import InputError
from common.section import Place, Section, Text

CONTROL_SUFFIX = "_again"
"""Of the control arm's name."""
RESERVED = ("runs", "out", "logs")
"""Placeholders of analyses, and a folder of the suite's directory."""
CONTROL_SEEDS_FROM = 1000
"""How far the control's seeds are from the suite's, unless the suite names them."""


def _distinct(values: list[Any]) -> list[Any]:
    twice = [value for number, value in enumerate(values) if value in values[:number]]
    if twice:
        raise ValueError(f"{twice[0]} is there twice")
    return values


Seeds = Annotated[list[int], AfterValidator(_distinct)]
Rates = Annotated[list[Annotated[float, Field(gt=0)]], AfterValidator(_distinct)]


class Scenario(Section):
    """What is done to every arm: a stress, a shorter warm-up, or nothing."""

    overrides: list[str] = Field(default=[])
    """Of the recipe, after those of the arm."""
    branch_from: Text | None = None
    """SCENARIO@STEP: its runs begin at that step of the same arm, rate and seed in an earlier scenario."""
    rates: Rates | None = None
    """Instead of the suite's, for every arm."""
    arms: list[Text] | None = Field(default=None, min_length=1)
    """Only these; default: all. The control follows the baseline."""
    seeds: Annotated[Seeds, Field(min_length=1)] | None = None
    """Only these of the suite's; default: all."""


class Suite(Section):
    """A suite file."""

    recipe: Place
    """The recipe of all runs, relative to the suite file."""
    out: Place
    """Directory of the runs, analyses and logs."""
    overrides: list[str] = Field(default=[])
    """Of the recipe, in all runs, before those of the arm and the scenario."""
    arms: dict[Text, list[str]] = Field(min_length=1)
    """Overrides of the recipe, by the name of the arm."""
    baseline: Text | None = None
    """The arm that the others are compared with; default: the first."""
    scenarios: dict[Text, Scenario] = Field(default={})
    """By name; default: one, which changes nothing."""
    rates: Rates = Field(default=[])
    """Peak learning rates (optimizer.lr) of every arm; default: the recipe's."""
    seeds: Seeds = Field(default=[])
    """Every run is repeated with each of these seeds; default: the recipe's."""
    arm_seeds: dict[Text, Annotated[Seeds, Field(min_length=1)]] = Field(default={})
    """Only these of the suite's seeds, for some arms; default: all. The control follows the baseline."""
    arm_rates: dict[Text, Annotated[Rates, Field(min_length=1)]] = Field(default={})
    """Instead of the suite's rates, for some arms, in scenarios that name none. The control follows the baseline."""
    control: Seeds | None = None
    """Seeds of the A/A control, <baseline>_again, as many as ``seeds``: what seems to differ between the two is noise. Default,
    with two seeds or more: those of the suite plus 1000. [] for no control."""
    analyses: list[str] = Field(default=[])
    """Commands of analysis/ to run afterwards; {out} is the suite's directory, {runs} all runs, {arm} those of an arm."""
    next: list[str] = Field(default=[])
    """Lines to print when everything is done, saying what to look at; {out} is the suite's directory."""

    @model_validator(mode="after")
    def _names_are_free(self) -> Suite:
        for arm in self.arms:
            if arm in RESERVED:
                raise ValueError(f"arms.{arm}: {', '.join(RESERVED)} have meanings of their own; choose another name")
        if self.control_seeds and self.control_arm in self.arms:
            raise ValueError(f"arms.{self.control_arm}: that is the control's name; choose another")
        return self

    @model_validator(mode="after")
    def _names_exist(self) -> Suite:
        if self.baseline is not None and self.baseline not in self.arms:
            raise ValueError(f"baseline: {self.baseline} is no arm; there are {', '.join(self.arms)}")
        if self.control and len(self.control) != len(self.seeds):
            raise ValueError(f"control: has {len(self.control)} seeds where seeds has {len(self.seeds)}")
        if set(self.control_seeds) & set(self.seeds):
            raise ValueError("control: must have seeds of its own, none of the suite's")
        for arm, seeds in self.arm_seeds.items():
            self._refuse_unknown(f"arm_seeds.{arm}", arms=[arm], seeds=seeds)
        for arm in self.arm_rates:
            self._refuse_unknown(f"arm_rates.{arm}", arms=[arm])
            if not self.rates:
                raise ValueError(f"arm_rates.{arm}: needs rates, those of the other arms")
        for key, own in (("overrides", self.overrides), *((f"arms.{arm}", own) for arm, own in self.arms.items())):
            self._refuse_overridden(key, own, bool(self.rates))
        earlier: list[str] = []
        for name, scenario in self.scenarios.items():
            rates = self.rates if scenario.rates is None else scenario.rates
            self._refuse_overridden(f"scenarios.{name}", scenario.overrides, bool(rates))
            self._refuse_unknown(f"scenarios.{name}.arms", arms=scenario.arms or ())
            self._refuse_unknown(f"scenarios.{name}.seeds", seeds=scenario.seeds or ())
            if scenario.branch_from is not None:
                origin, _, step = scenario.branch_from.rpartition("@")
                if origin not in earlier or not step.isdecimal():
                    raise ValueError(
                        f"scenarios.{name}.branch_from: {scenario.branch_from}: give a scenario above it and a step, as calm@100"
                    )
            earlier.append(name)
        return self

    def _refuse_unknown(self, key: str, arms: Sequence[str] = (), seeds: Sequence[int] = ()) -> None:
        """Raise ValueError for arms and seeds that the suite does not have."""
        for arm in arms:
            if self.control_seeds and arm == self.control_arm:
                raise ValueError(f"{key}: the control follows the baseline; name {self.baseline_arm} instead")
            if arm not in self.arms:
                raise ValueError(f"{key}: {arm} is no arm; there are {', '.join(self.arms)}")
        for seed in seeds:
            if seed not in self.seeds:
                raise ValueError(f"{key}: {seed} is none of the suite's seeds")

    def _refuse_overridden(self, key: str, overrides: Sequence[str], rates: bool) -> None:
        """Raise ValueError for an override of what every run is given by the suite: it would be without effect."""
        given = {"optimizer.lr": ("rates", rates), "seed": ("seeds", bool(self.seeds))}
        for override in overrides:
            source, used = given.get(override.partition("=")[0].strip(), ("", False))
            if used:
                raise ValueError(f"{key}: {override} has no effect where the suite has {source}; leave one out")

    @property
    def baseline_arm(self) -> str:
        """The arm that the others are compared with."""
        return self.baseline or next(iter(self.arms))

    @property
    def control_arm(self) -> str:
        """The name of the baseline with other seeds."""
        return f"{self.baseline_arm}{CONTROL_SUFFIX}"

    @property
    def control_seeds(self) -> list[int]:
        """The control's seeds, in the order of ``seeds``; none without a control."""
        if self.control is not None:
            return self.control
        return [seed + CONTROL_SEEDS_FROM for seed in self.seeds] if len(self.seeds) > 1 else []


def _problem(error: Any) -> str:
    """One line for one pydantic error, in the words that a recipe's mistakes have."""
    from configs.messages import but_is, nearest  # a suite without mistakes does not pay for the import

    place = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        said = f"unknown key{nearest(place[-1], (Suite if len(place) == 1 else Scenario).model_fields)}"
    elif error["type"] == "missing":
        said = "is required and has no default"
    elif error["type"] == "value_error":
        said = str(error["ctx"]["error"])
    else:
        said = but_is(error)
    return ": ".join(filter(None, [".".join(place), said]))


def load_suite(path: Path) -> Suite:
    """The checked suite file. Raises InputError naming each mistake."""
    try:
        return Suite.model_validate(OmegaConf.to_container(OmegaConf.load(path)))
    except pydantic.ValidationError as error:
        raise InputError(*(f"{path}: {_problem(each)}" for each in error.errors())) from None
    except (OSError, yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
