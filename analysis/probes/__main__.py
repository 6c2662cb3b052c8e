"""Measure models by a probe: its values over seeds and over training, and the arms compared.

    python -m analysis.probes PROBE RUN|SUITE_DIR... --out DIR [--set KEY=VALUE]... [--over-training] [--no-untrained] [--seed N]
        [--plugins FILE]...
    python -m analysis.probes --list [--plugins FILE]...

RUN is a run directory, a checkpoint directory, or the directory of a transformers causal LM with the same tokenizer; a suite's
directory stands for the calm runs of all of its arms, each at its best rate. Runs that
differ in nothing but the seed are one arm; differences are from the first arm, paired by seed. --list shows all probes with
their options and measures; --plugins names a Python file with probes of your own.

Prints tables, and writes summary.json, values.csv (a row for each model, measure and index) and figures, probe.png first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.show.text import estimate, number
from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.files import write_json, write_text
from common.imports import importing

if TYPE_CHECKING:
    from analysis.compare.statistics import Effect

    from .base import Probe
    from .evaluate import Evaluation


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    with importing():
        from configs.load import import_plugins

        from .kinds import PROBES
    import_plugins(options.plugins)
    if options.list:
        print("\n".join(_described(PROBES)))
        return
    if options.probe is None or not options.runs or options.out is None:
        parser.error("PROBE, RUN and --out are required, or --list")
    if options.seed < 0:
        raise InputError(f"--seed is {options.seed}; give a whole number from 0")
    _measure(_probe(options.probe, options.set, options.runs), options)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m analysis.probes", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("probe", nargs="?", metavar="PROBE", help="its name; --list shows all")
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN|SUITE_DIR",
        help="runs, checkpoints or suites; those of the first arm are the baseline",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the probe; may be repeated"
    )
    parser.add_argument("--over-training", action="store_true", help="measure every checkpoint of the runs")
    parser.add_argument("--no-untrained", action="store_true", help="leave out the first run's model before training")
    parser.add_argument("--seed", type=int, default=0, help="of whatever the probe draws (default 0)")
    parser.add_argument(
        "--plugins",
        action="append",
        default=[],
        metavar="FILE",
        help="a Python file with probes of your own; may be repeated",
    )
    parser.add_argument("--list", action="store_true", help="show all probes")
    return parser


def _described(probes: dict[str, Any]) -> list[str]:
    from configs.list import kind_lines

    return [
        line
        for kind, cls in probes.items()
        for line in (
            *kind_lines(kind, cls),
            *(f"    -> {measure.key} ({measure.unit}): {measure.meaning}" for measure in cls.measures),
        )
    ]


def _probe(kind: str, settings: Sequence[str], runs: Sequence[str]) -> Probe[Any]:
    """The probe with these options. Raises :class:`InputError` with every mistake in them."""
    import pydantic

    from analysis.stability.chosen import arms_at
    from common.registry import checked_options
    from configs.kinds import option_names, option_problem
    from configs.load import load_recorded
    from configs.messages import nearest
    from configs.recipe import read_overrides

    from .kinds import PROBES

    if kind not in PROBES:
        for run in {member.run for arm in arms_at(runs) for member in arm.members if member.run}:
            load_recorded(run)  # registers what its plugins define
    if kind not in PROBES:
        hint = nearest(kind, PROBES) or "; one of your own needs its file in --plugins"
        raise InputError(f"{kind}: no such probe; there are {', '.join(PROBES)}{hint}")
    cls = PROBES[kind]
    values, unread = read_overrides(settings)
    if unread:
        raise InputError(*(f"--set {line}" for _, line in unread))
    try:
        probe: Probe[Any] = cls(checked_options(cls, values))
    except pydantic.ValidationError as error:
        names = option_names("probe", cls)
        keys = {".".join(map(str, e["loc"])): e for e in error.errors()}
        raise InputError(*(f"--set {key}: {option_problem(key, e, kind, names)}" for key, e in keys.items())) from None
    return probe


def _measure(probe: Probe[Any], options: Any) -> None:
    from analysis.compare.arms import arms_differ_in, untrained_arm
    from analysis.compare.text import open_text
    from analysis.show import style
    from analysis.stability.chosen import arms_at

    from .compare import comparisons
    from .evaluate import evaluate, last_points
    from .figure import probe_figures
    from .over_training import points_of

    arms = arms_at(options.runs)
    text = open_text(arms)
    points = points_of(arms) if options.over_training else last_points(arms)
    if not options.over_training and not options.no_untrained:
        points += last_points([untrained_arm(arms[0], arms)])
    evaluation = evaluate(probe, points, text, seed=options.seed)
    found = list(comparisons(evaluation.table, evaluation.measures))
    write_json(options.out / "summary.json", _summary(probe, evaluation, found, options))
    write_text(options.out / "values.csv", evaluation.table.to_csv(index=False, lineterminator="\n"))
    with style.look():
        report = probe.report(evaluation.details)
        title = f"{probe.kind}: {_first_line(probe)}"
        drawn = probe_figures(evaluation.table, evaluation.measures, title, evaluation.names) | report.figures
        for name, figure in drawn.items():
            style.save_figure(figure, options.out / f"{name}.png")
    print("\n".join([*_printed(evaluation, found), *report.lines, *arms_differ_in(arms)]))
    print(f"written to {options.out}: summary.json, values.csv, {', '.join(f'{name}.png' for name in drawn)}")


def _first_line(probe: Probe[Any]) -> str:
    from configs.describe import first_line

    return first_line(type(probe))


def _summary(probe: Probe[Any], evaluation: Evaluation, found: list[dict[str, Any]], options: Any) -> dict[str, Any]:
    table = evaluation.table
    models = table[["arm", "run", "seed", "step", "tokens", "diverged"]].drop_duplicates()
    effects = ("mean", "difference", "growth")
    return {
        "probe": probe.kind,
        "meaning": _first_line(probe),
        "options": asdict(probe.options),
        "seed": options.seed,
        "models": models.astype(object).where(models.notna(), None).to_dict(orient="records"),
        "measures": {
            m.key: {
                "unit": m.unit,
                "meaning": m.meaning,
                "along": m.along,
                "places": [*evaluation.names(m.along)] if m.along else [],
            }
            for m in evaluation.measures
        },
        "arms": [one | {key: one[key] and asdict(one[key]) for key in effects} for one in found],
        "details": evaluation.details,
    }


def _printed(evaluation: Evaluation, found: list[dict[str, Any]]) -> list[str]:
    """A table of the single numbers, and what they are."""
    from analysis.compare.arms import diverged_line
    from analysis.show.tables import terminal_table

    from .growth import FEWEST

    table = evaluation.table
    singles = [measure for measure in evaluation.measures if measure.along is None]
    first = table["arm"].iloc[0]
    grows = any(max(one["checkpoints"], default=0) > 1 for one in found)
    known = {one["measure"] for one in found if one["mean"].n}
    heading = ["measure, arm", "seeds", "mean [95%]", f"minus {first} [95%]", "pairs", "smallest"]
    heading += ["growth [95%]", "checkpoints"] * grows
    rows = []
    for one in (one for one in found if one["index"] < 0 and one["measure"] in known):
        if one["arm"] == first:
            rows.append([one["measure"], *[""] * (len(heading) - 1)])
        rows.append(_row(one, grows))
    lines = [terminal_table(heading, rows), ""] if rows else []
    lines += [f"{measure.key} ({measure.unit}): {measure.meaning}" for measure in singles]
    lines += [
        "Intervals: Student's t over seeds; none from one seed, or where all seeds agree.",
        f"pairs: seeds shared with {first}, from which the difference is taken; none: difference of the means, without interval.",
        "smallest: the smallest true difference that would be shown with 80% power.",
    ]
    lines += [
        "growth: b of value ~ tokens^b, by least squares over the logarithms of each run's checkpoints but the one at 0 tokens; "
        f"checkpoints: how many of a run that is; -: fewer than {FEWEST}, from which no rate is given."
    ] * grows
    diverged = table[table["diverged"]].drop_duplicates(["run", "step"]).itertuples()
    return lines + [diverged_line(row.run, row.step, row.tokens) for row in diverged]


def _row(one: dict[str, Any], grows: bool) -> list[str]:
    mean, difference, growth = one["mean"], one["difference"], one["growth"]
    cells = [f"  {one['arm']}", _cell(mean, str(mean.n)), _estimate(mean)]
    if difference is None:
        cells += ["", "", ""]
    else:
        smallest = "" if difference.smallest is None else number(difference.smallest, 2)
        pairs = str(difference.n) if one["paired"] else ""
        cells += [_estimate(difference, signed=True), *(_cell(difference, text) for text in (pairs, smallest))]
    if grows:
        counts = one["checkpoints"]
        cells += ["-" if growth is None and counts else "" if growth is None else _estimate(growth, signed=True)]
        cells += [" to ".join(str(count) for count in dict.fromkeys([min(counts), max(counts)])) if counts else ""]
    return cells


def _estimate(effect: Effect, *, signed: bool = False) -> str:
    """An effect to the precision of its interval; empty where nothing could be measured."""
    return _cell(effect, estimate(effect.mean, effect.low, effect.high, signed=signed))


def _cell(effect: Effect, text: str) -> str:
    """Empty where nothing could be measured."""
    return text if effect.n else ""


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
