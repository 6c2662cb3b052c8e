"""Measure models by a probe: its values over seeds and over training, and the arms compared.

    python -m analysis.probes PROBE RUN... --out DIR [--set KEY=VALUE ...] [--over-training] [--no-untrained] [--seed N]
        [--plugins FILE]
    python -m analysis.probes --list [--plugins FILE]

RUN is a run directory, a checkpoint directory, or the directory of a transformers causal LM with the same tokenizer. Runs that
differ in nothing but the seed are one arm; differences are from the first arm, paired by seed. --list shows all probes with
their options and measures; --plugins names a Python file with probes of your own.

Prints tables, and writes summary.json, values.csv (a row for each model, measure and index) and probe.png.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.files import write_json, write_text
from common.imports import importing

if TYPE_CHECKING:
    import pandas as pd

    from .base import Probe


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = _parser()
    options = parser.parse_args(arguments)
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
    _measure(_probe(options.probe, options.set), options)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m analysis.probes", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("probe", nargs="?", metavar="PROBE", help="its name; --list shows all")
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="runs or checkpoints; those of the first arm are the baseline"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="options of the probe"
    )
    parser.add_argument("--over-training", action="store_true", help="measure every checkpoint of the runs")
    parser.add_argument("--no-untrained", action="store_true", help="leave out the first run's model before training")
    parser.add_argument("--seed", type=int, default=0, help="of whatever the probe draws (default 0)")
    parser.add_argument(
        "--plugins", action="append", default=[], metavar="FILE", help="a Python file with probes of your own"
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


def _probe(kind: str, settings: Sequence[str]) -> Probe[Any]:
    """The probe with these options. Raises :class:`InputError` with every mistake in them."""
    import pydantic

    from common.registry import checked_options
    from configs.kinds import option_names, option_problem
    from configs.messages import nearest
    from configs.recipe import read_overrides

    from .kinds import PROBES

    if kind not in PROBES:
        raise InputError(f"{kind}: no such probe; there are {', '.join(PROBES)}{nearest(kind, PROBES)}")
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
    from analysis.compare.arms import arms_differ_in, find_arms, untrained_arm
    from analysis.compare.text import open_text
    from analysis.show import style

    from .compare import comparisons
    from .evaluate import evaluate, last_points
    from .figure import draw_probe
    from .over_training import points_of

    arms = find_arms(options.runs)
    text = open_text(arms)
    points = points_of(arms) if options.over_training else last_points(arms)
    if not options.over_training and not options.no_untrained:
        points += last_points([untrained_arm(arms[0], arms)])
    table = evaluate(probe, points, text, seed=options.seed)
    found = list(comparisons(table, probe.measures))
    write_json(options.out / "summary.json", _summary(probe, table, found, options))
    write_text(options.out / "values.csv", table.to_csv(index=False, lineterminator="\n"))
    with style.look():
        style.save_figure(
            draw_probe(table, probe.measures, f"{probe.kind}: {_first_line(probe)}"), options.out / "probe.png"
        )
    print("\n".join([*_printed(probe, table, found), *arms_differ_in(arms)]))
    print(f"written to {options.out}: summary.json, values.csv, probe.png")


def _first_line(probe: Probe[Any]) -> str:
    from configs.describe import first_line

    return first_line(type(probe))


def _summary(probe: Probe[Any], table: pd.DataFrame, found: list[dict[str, Any]], options: Any) -> dict[str, Any]:
    models = table[["arm", "run", "seed", "step", "tokens", "diverged"]].drop_duplicates()
    return {
        "probe": probe.kind,
        "meaning": _first_line(probe),
        "options": asdict(probe.options),
        "seed": options.seed,
        "models": models.astype(object).where(models.notna(), None).to_dict(orient="records"),
        "measures": {m.key: {"unit": m.unit, "meaning": m.meaning, "along": m.along} for m in probe.measures},
        "arms": [
            {**one, "mean": asdict(one["mean"]), "difference": one["difference"] and asdict(one["difference"])}
            for one in found
        ],
    }


def _printed(probe: Probe[Any], table: pd.DataFrame, found: list[dict[str, Any]]) -> list[str]:
    """A table of the single numbers, and what they are."""
    from analysis.show.tables import terminal_table

    singles = [measure for measure in probe.measures if measure.along is None]
    arms = list(dict.fromkeys(table["arm"]))
    seeds = {arm: table["run"][table["arm"] == arm].nunique() for arm in arms}
    by_place = {(one["arm"], one["measure"]): one for one in found if one["index"] < 0}
    rows = []
    for measure in singles:
        for arm in arms:
            one = by_place[arm, measure.key]
            difference, mean = one["difference"], one["mean"]
            rows.append(
                [
                    measure.key if arm == arms[0] else "",
                    arm,
                    str(seeds[arm]),
                    mean.format(".4f"),
                    difference.format("+.4f") if difference else "",
                    f"{difference.smallest:.4f}" if difference and difference.smallest is not None else "",
                ]
            )
    lines = [terminal_table(["measure", "arm", "seeds", "mean [95%]", f"minus {arms[0]} [95%]", "smallest"], rows), ""]
    lines += [f"{measure.key} ({measure.unit}): {measure.meaning}" for measure in singles]
    lines.append("Intervals: Student's t over seeds, differences paired by seed; none from one seed.")
    lines.append("smallest: the smallest true difference that would be shown with 80% power.")
    if diverged := table[table["diverged"]].drop_duplicates(["run", "step"]).itertuples():
        lines += [
            f"{row.run} step {row.step} has diverged: its logits are not finite; it has no values" for row in diverged
        ]
    return lines


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
