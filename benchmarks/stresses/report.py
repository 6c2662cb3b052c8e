"""Tables of the arms that have run, in Markdown, from their run directories."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.show.tables import markdown_table
from analysis.stability.curve import noise
from analysis.stability.measure import update_size
from record.finished import Run, load_run

from .arms import Plan, directory, has_ended, parent_directory
from .measure import USUAL, Damage, Floats, Found, damage, found

NLL, NORM, VALIDATION = "loss/nll", "grad_norm/total", "validation/nll"
NOISE_OF = 64
"""Steps before a fault whose noise is the usual one."""
LITTLE = 3.0
"""Noise of a step up to which a spike that was not found was none."""
HEADER = ["height", "height after it", "steps until back", "tokens lost", "nat-steps", "nat-steps after it"]
HEADER += ["validation NLL", "gradient / usual"]
FOUND = "found by the run's watch"


@dataclass(frozen=True)
class Arm:
    """What a stress did to an arm, held against a calm one."""

    damage: Damage
    tokens: int | None
    """Drawn until the NLL was back, in steps that a rewind took back too."""
    validation: float
    """Difference of the NLL at the end; NaN if the run has none."""
    gradient: float
    """Highest gradient norm, before any remedy, as a multiple of the usual one."""
    found: list[Found]
    sigma: float
    """Noise of a step of the calm run."""

    def cells(self) -> list[str]:
        """The columns of HEADER and FOUND."""
        did = self.damage
        back = "run ended" if did.ended else "not by the end" if did.back is None else f"{did.back}"
        tokens = "" if self.tokens is None else f"{self.tokens:,}"
        numbers = [signed(did.height), signed(did.height_after), back, tokens, signed(did.excess, 1)]
        numbers += [signed(did.excess_after, 1), signed(self.validation, 3), f"{self.gradient:.3g}"]
        return [*numbers, self.seen()]

    def seen(self) -> str:
        """What the run's own watch found, or why it found nothing."""
        if self.found:
            return ", ".join(f"{one.kind} in {one.signal} {one.delay:+d}" for one in self.found)
        sigmas = self.damage.height / self.sigma
        told = f"{self.damage.height:.2f} nats, {sigmas:.1f} sigma, gradient x{self.gradient:.1f}"
        return f"missed: {told}" if sigmas > LITTLE else f"no spike to find: {told}"


def compared(plan: Plan, stressed: Run, calm: Run, usual: Run, fault: Mapping[str, Any]) -> Arm:
    """A stressed run against a calm one. ``usual``: the parent, for what was usual before the fault."""
    acting, sigma = fault.get("steps", 1), noise(_before(usual, NLL, plan.fault)[-NOISE_OF:])
    did = damage(_since(stressed, NLL, plan.fault), _since(calm, NLL, plan.fault), acting, sigma)
    again = sum(event["from_step"] - event["to_step"] for event in stressed.events if event["event"] == "rewind")
    norm_S = np.nan_to_num(_since(stressed, NORM, plan.fault), nan=np.inf)
    return Arm(
        damage=did,
        tokens=None if did.back is None else (did.back + again) * plan.tokens_per_step,
        validation=_validation(stressed, plan) - _validation(calm, plan),
        gradient=float(norm_S.max() / np.median(_before(usual, NORM, plan.fault)[-USUAL:])),
        found=found(stressed.events, calm.events, plan.fault, plan.fault + acting - 1),
        sigma=sigma,
    )


def stress_table(plan: Plan) -> str:
    """A row for each stress without remedy, held against the parent; first the calm arm, which must be the same run."""
    calm = load_run(parent_directory(plan))
    rows = []
    faults: list[tuple[str | None, Mapping[str, Any]]] = [(None, {}), *plan.stresses.items()]
    for name, fault in faults:
        if has_ended(path := directory(plan, None, name)):
            arm = compared(plan, load_run(path), calm, calm, fault)
            rows.append([name or "calm", f"{fault.get('steps', 1)}" if fault else "", *arm.cells()])
    table = markdown_table(["stress", "lasts", *HEADER, FOUND], rows)
    return f"{table}\n{_calm_table(plan, calm)}" + _not_run(plan, [None], plan.stresses)


def _calm_table(plan: Plan, calm: Run) -> str:
    """What the other tables are measured in, and whether a branch without a stress is its parent again."""
    repeated = load_run(directory(plan, None, None)).series(NLL)
    equal = int((repeated == calm.series(NLL)[repeated.index]).sum())
    rows = {
        "tokens of a step": f"{plan.tokens_per_step:,}",
        "noise of the NLL of a step, nats": f"{noise(_before(calm, NLL, plan.fault)[-NOISE_OF:]):.3f}",
        "usual gradient norm": f"{np.median(_before(calm, NORM, plan.fault)[-USUAL:]):.2f}",
        "validation NLL at the end": f"{_validation(calm, plan):.3f}",
        "steps of the calm arm whose NLL is the parent's to the bit": f"{equal} of {len(repeated)}",
    }
    return markdown_table(["calm", "value"], [list(row) for row in rows.items()])


def remedy_tables(plan: Plan) -> str:
    """What each remedy costs and what is left of each stress; then a table for each stress, held against the remedy's own calm
    run."""
    baseline = load_run(parent_directory(plan))
    calm = {name: load_run(path) for name in plan.remedies if has_ended(path := directory(plan, name, None))}
    calm = {"none": baseline} | calm
    header = ["remedy", "updates / baseline's", "calm", *plan.treated]
    rows: list[list[str]] = []
    tables: dict[str, list[list[str]]] = {stress: [] for stress in plan.treated}
    for remedy, own in calm.items():
        ends = [_validation(own, plan)]
        for stress in plan.treated:
            path = directory(plan, None if remedy == "none" else remedy, stress)
            stressed = load_run(path) if has_ended(path) else None
            ends.append(math.nan if stressed is None else _validation(stressed, plan))
            if stressed is not None:
                tables[stress].append([remedy, *compared(plan, stressed, own, baseline, plan.stresses[stress]).cells()])
        against = [signed(end - _validation(baseline, plan), 3) for end in ends]
        rows.append([remedy, f"{update_size(own, baseline) or math.nan:.2f}", *against])
    parts = [markdown_table(header, rows)]
    parts += [markdown_table([stress, *HEADER, FOUND], table) for stress, table in tables.items() if table]
    return "\n".join(parts) + _not_run(plan, plan.remedies, [None, *plan.treated])


def signed(value: float, digits: int = 2) -> str:
    """A difference, or nothing where there is none."""
    return "" if math.isnan(value) else f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _before(run: Run, name: str, step: int) -> Floats:
    values = run.series(name)
    return values[values.index < step].to_numpy()


def _since(run: Run, name: str, step: int) -> Floats:
    values = run.series(name)
    return values[values.index >= step].to_numpy()


def _validation(run: Run, plan: Plan) -> float:
    value = run.value(VALIDATION, plan.last)
    return math.nan if value is None else value


def _not_run(plan: Plan, remedies: Sequence[str | None] | Mapping[str, Any], stresses: Any) -> str:
    missing = [
        " under ".join(filter(None, (remedy, stress))) or "calm"
        for remedy in remedies
        for stress in stresses
        if not has_ended(directory(plan, remedy, stress))
    ]
    return f"\nNot run: {', '.join(missing)}.\n" if missing else ""
