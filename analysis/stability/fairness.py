"""What was matched between the arms and what was not, and what a reader has to know before believing a difference."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from analysis.compare.differing import differing_words
from analysis.show.text import first_of
from record.finished import Run

from .compare import COMMON, OWN_BEST, PRIMARY, Row, Study
from .runs import Cell, Comparison

_NAMED = 4
_SAME_SIZE = 0.1
"""Relative difference in the size of updates from which on it is told."""


def matched(comparison: Comparison) -> str:
    """A sentence: in which keys the arms' configurations differ, but for seed, rate, stress and branch."""
    configs = compared_configs(comparison)
    if len(configs) < 2:
        return "There is no other arm than the baseline" + ("." if comparison.control is None else " and its control.")
    return differing_words(list(configs.values()), f"arms {', '.join(configs)}")


def compared_configs(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """The configuration of each arm but the control, without seed, rate, stress and branch."""
    configs = {}
    for arm in comparison.arms:
        cell = next((cell for cell in comparison.runs if cell.arm == arm), None)
        if cell is not None and arm != comparison.control:
            config = dict(comparison.runs[cell].config)
            optimizer = {key: value for key, value in (config.get("optimizer") or {}).items() if key != "lr"}
            left = {key: config[key] for key in config if key not in ("seed", "stress", "branch_from", "optimizer")}
            configs[arm] = left | {"optimizer": optimizer}
    return configs


def warnings(found: Study) -> list[str]:
    """Why the arms may not be comparable; the gravest first."""
    one = found.comparison
    return [
        *_control(found),
        *_not_the_same(one, "parameters", _parameters),
        *_not_the_same(one, "text (data store)", lambda run: _environment(run).get("data", {}).get("store")),
        *_not_the_same(one, "last step (train.steps)", lambda run: run.setting("train", "steps")),
        *_not_the_same(one, "tokens a step", _tokens_a_step),
        *_plan_broken(one),
        *_grids(found),
        *_sizes(found),
        *_capped(found),
    ]


def _control(found: Study) -> Iterator[str]:
    if found.comparison.control is None:
        yield "no A/A control: whether two identical arms come out equal was not checked"
    told = set()
    for row in _control_rows(found):
        effect = row.difference.effect
        if not row.null and (row.scenario, effect.mean) not in told:  # two bases may choose the same runs
            told.add((row.scenario, effect.mean))
            yield (
                f"THE A/A CONTROL IS NOT NULL: {row.arm}, the baseline again, has a {row.verdict} {row.measure.heading} "
                f"({row.scenario}, {row.basis}: {effect.format('+.4f')}); one in twenty such checks fails by "
                "chance, otherwise the seeds are no fair sample"
            )


def _control_rows(found: Study) -> list[Row]:
    """The control against the baseline in the final NLL, on every basis that is concluded from, where there is an interval."""
    one = found.comparison
    bases = {scenario: [b for b in found.bases(scenario) if b in (OWN_BEST, COMMON)] for scenario in one.scenarios}
    rows = [row for scenario, own in bases.items() for basis in own for row in found.rows(scenario, basis, PRIMARY)]
    return [row for row in rows if row.control and row.difference.effect.low is not None]


def noise_line(found: Study) -> str | None:
    """How much two runs of the baseline differ by chance; None from a single seed."""
    noise = found.noise_of_baseline()
    if noise is None:
        return None
    spread = f"{noise.deviation:.4f} [{noise.low:.4f}, {noise.high:.4f}] nats over {noise.seeds} seeds"
    return f"noise floor: standard deviation of the baseline's final NLL {spread}"


def control_line(found: Study) -> str | None:
    """How the A/A control came out; None without one that has an interval."""
    rows = _control_rows(found)
    if not rows:
        return None
    null = sum(row.null for row in rows)
    return f"A/A control: no difference from the baseline in {null} of {len(rows)} comparisons of the final NLL"


def _not_the_same(comparison: Comparison, what: str, value_of: Callable[[Run], Any]) -> Iterator[str]:
    """A warning if the runs of two arms differ in a value."""
    values: dict[str, set[str]] = {}
    for cell, run in comparison.runs.items():
        if (value := value_of(run)) is not None:
            values.setdefault(cell.arm, set()).add(str(value))
    usual = values.get(comparison.baseline, set())
    told = [f"{arm} {'/'.join(sorted(own))}" for arm, own in values.items() if own != usual or len(own) > 1]
    if told:
        of_baseline = [f"{comparison.baseline} {'/'.join(sorted(usual))}"] if len(usual) == 1 else []
        yield f"runs differ in {what}: {first_of([*of_baseline, *told], _NAMED)}"


def _plan_broken(comparison: Comparison) -> Iterator[str]:
    """Runs whose configuration has another rate or seed than the plan says."""
    wrong = [
        run.name
        for cell, run in comparison.runs.items()
        if run.config.get("seed", cell.seed) != cell.seed
        or (cell.rate is not None and run.setting("optimizer", "lr") not in (None, cell.rate))
    ]
    if wrong:
        yield f"{len(wrong)} runs have another rate or seed than the plan says: {first_of(wrong, _NAMED)}"


def _grids(found: Study) -> Iterator[str]:
    """Arms whose rates are not the baseline's, or that share no seed with it; runs that are missing where all are needed; and
    best rates at an end of the grid."""
    one = found.comparison
    base = one.baseline
    for arm in one.compared:
        absent = [scenario for scenario in one.scenarios if one.rates(base, scenario) and not one.rates(arm, scenario)]
        if absent:
            yield f"{arm} has no runs in {', '.join(absent)}"
        for scenario in one.scenarios:
            if one.rates(arm, scenario) not in ([], one.rates(base, scenario)):
                yield f"{arm} has other rates than {base} in {scenario}"
        if not one.pairs(arm):
            yield f"{arm} and {base} have no seed in common, and are not compared"
    alone = [arm for arm in one.arms if len(one.seeds(arm)) == 1 and len(found.sweeps[arm, one.calm].rates) > 1]
    if alone:
        yield f"a single seed chooses the rate at which it is judged, so that {OWN_BEST} favours {first_of(alone, _NAMED)}"
    lacking = [
        f"{arm} seed {seed} ({', '.join(f'{rate:g}' for rate in missing)})"
        for arm in one.arms
        for seed in one.seeds(arm)
        if (missing := _missing_rates(found, arm, seed)) and seed in found.sweeps[arm, one.calm].seeds
    ]
    if lacking:
        yield f"without a sensitivity, as these rates are missing: {first_of(lacking, _NAMED)}"
    few = [
        f"{arm} {rate:g}"
        for arm in one.arms
        for rate in one.rates(arm, one.calm)
        if rate is not None and found.sweeps[arm, one.calm].rates and rate not in found.sweeps[arm, one.calm].rates
    ]
    if few:
        yield f"rates with too few runs to count among an arm's rates: {first_of(few, _NAMED)}"
    ends = []
    for arm in one.arms:
        sweep = found.sweeps[arm, one.calm]
        if len(sweep.rates) > 1 and sweep.seeds and not sweep.inside:
            ends.append(f"{arm} ({sweep.best():g})")
    if ends:
        yield f"the best rate is at an end of the grid, and a better one may lie beyond: {', '.join(ends)}"


def _missing_rates(found: Study, arm: str, seed: int) -> list[float]:
    """The rates of an arm's sweep at which a run of this seed was planned and is missing."""
    one, sweep = found.comparison, found.sweeps[arm, found.comparison.calm]
    planned = [rate for rate in sweep.rates if Cell(arm, one.calm, rate, seed) in one.planned]
    return [rate for rate in planned if (rate, seed) not in sweep.final]


def _sizes(found: Study) -> Iterator[str]:
    """Arms whose updates at the baseline's rate have another size."""
    one = found.comparison
    for arm in one.compared:
        values = found.on(COMMON, "update_size", arm, one.calm)
        if values and arm != one.control:
            mean = sum(values.values()) / len(values)
            if abs(mean - 1) > _SAME_SIZE:
                yield (
                    f"{arm}'s updates are {mean:.2g} times the baseline's at the same rate: it may be no more than another "
                    f"rate; read {OWN_BEST}"
                )


def _capped(found: Study) -> Iterator[str]:
    names = [found.comparison.name(cell) for cell, m in found.measured.items() if m.values["capped"]]
    if names:
        yield (
            f"diverged or ended above the initial NLL, and counted with that as final NLL: {len(names)} runs: "
            f"{first_of(names, _NAMED)}"
        )


def _environment(run: Run) -> dict[str, Any]:
    """What environment.json holds; empty without one that can be read."""
    try:
        found = json.loads((Path(run.path) / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _parameters(run: Run) -> Any:
    return _environment(run).get("parameters")


def _tokens_a_step(run: Run) -> int | None:
    batch, length = run.setting("train", "batch_size"), run.setting("data", "sequence_length")
    return batch * length if isinstance(batch, int) and isinstance(length, int) else None


def unbegun_line(comparison: Comparison) -> str | None:
    """How many branches count without having begun; None if all could."""
    count = len(comparison.unbegun)
    if not count:
        return None
    told = "1 branch counts as diverged, for the run that it begins at" if count == 1 else ""
    return f"{told or f'{count} branches count as diverged, for the run that they begin at'} diverged before"


def seeds_line(comparison: Comparison) -> str | None:
    """How many seeds each arm has; None if all have as many."""
    by_count: dict[int, list[str]] = {}
    for arm in comparison.arms:
        by_count.setdefault(len(comparison.seeds(arm)), []).append(arm)
    if len(by_count) == 1:
        return None
    told = "; ".join(f"{count} of {first_of(arms, _NAMED)}" for count, arms in sorted(by_count.items(), reverse=True))
    return f"seeds: {told}; each comparison pairs those that both arms have, and says how many"


def presence(comparison: Comparison) -> list[list[str]]:
    """For each arm and scenario: runs that ended, out of those planned, branches that could not begin, and what became of the
    others."""
    rows = []
    for arm in comparison.arms:
        for scenario in comparison.scenarios:
            planned = [cell for cell in comparison.planned if cell[:2] == (arm, scenario)]
            if planned:
                there = [cell for cell in planned if cell in comparison.runs]
                unbegun = sum(cell in comparison.unbegun for cell in planned)
                count = [f"{len(there)} of {len(planned)}", f"{unbegun}" if unbegun else ""]
                rows.append([arm, scenario, *count, _why(comparison, planned)])
    return rows


def _why(comparison: Comparison, planned: list[Cell]) -> str:
    gone = [cell for cell in planned if cell in comparison.left_out]
    return "; ".join(f"{Path(comparison.planned[cell]).name}: {comparison.left_out[cell]}" for cell in gone)
