"""Synonym tolerance against tokens: the metrics of analysis.synonyms at every checkpoint of the runs.

    python -m analysis.tolerance RUN|SUITE_DIR... --out DIR
        [--pairs builtin|wordnet|wordnet:FOLDER|FILE] [--match-pos wordnet|wordnet:FOLDER] [--min-similarity S]
        [--contexts-per-word N] [--min-contexts N] [--seed N] [--last]

Runs that differ only in the seed form one arm; a suite's directory stands for the calm runs of all of its arms. If a run is
named by a checkpoint, only the checkpoints up to it are evaluated. A run's initial model, with the fresh weights of its seed,
stands at 0 tokens, unless the run began from another model's weights. A checkpoint that has diverged is named and has no values.
--last evaluates the last checkpoints alone. docs/synonyms.md says how to read the numbers.

Writes summary.json, tolerance.csv (a row for each run and checkpoint) and tolerance.png.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.compare.arms import Diverged, diverged_line, load_member
from analysis.compare.metric import WEIGHT, logged_weight
from analysis.compare.statistics import finite_mean
from analysis.compare.temperature import MEANINGS, VIEWS_OVER_TRAINING
from analysis.probes.over_training import Point, mean_over_runs, points_of
from analysis.show import style
from analysis.show.tables import terminal_table
from analysis.stability.chosen import arms_at
from analysis.synonyms.build_study import build_study
from analysis.synonyms.compare import item_means
from analysis.synonyms.encode import encode_study
from analysis.synonyms.measure_models import Data, ModelResult, encode_for, evaluate, open_data
from analysis.synonyms.metrics import KEYS, METRICS, column
from analysis.synonyms.options import Settings, add_settings, settings_of
from analysis.synonyms.report import counts, described
from analysis.synonyms.study import Study
from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.files import write_json, write_text

from .figure import draw_tolerance

CONTEXTS_PER_WORD = 20
"""By default: there are many checkpoints."""
WEIGHT_STEPS = 20
"""Steps up to a checkpoint over which the logged c, itself a mean over the tokens of one batch, is averaged."""
OTHERS = {
    "temperature_fitted": "temperature at which the model predicts held-out text best",
    "nll": "mean negative log-likelihood on a sample of held-out text, nats per token",
    "distance_ratio": "distance of synonyms' output embeddings over that of their controls, mean over items of single tokens",
    "tfsd_weight": f"{WEIGHT} as logged in training, mean over the {WEIGHT_STEPS} steps up to the checkpoint",
}
"""Columns of tolerance.csv beside the metrics of analysis.synonyms."""
_COLUMNS = (
    "temperature_fitted",
    *(column("nll", view) for view in VIEWS_OVER_TRAINING),
    "distance_ratio",
    *(column(key, view) for view in VIEWS_OVER_TRAINING for key in KEYS),
)
"""Those that come from evaluating the model."""
_PRINTED = {
    "auc": ("rank AUC", ".3f"),
    "log_odds": ("log-odds", ".3f"),
    "log_odds_fitted": ("fitted", ".3f"),
    "share_synonym_fitted": ("share syn", ".1e"),
    "share_control_fitted": ("share ctl", ".1e"),
    "distance_ratio": ("distance", ".3f"),
    "nll": ("NLL", ".3f"),
    "entropy": ("entropy", ".2f"),
    "tfsd_weight": ("mean c", ".3f"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m analysis.tolerance", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN|SUITE_DIR", help="run, a checkpoint in one, or suite")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--last", action="store_true", help="evaluate the last checkpoint of each run alone")
    add_settings(parser, CONTEXTS_PER_WORD)
    options = parser.parse_args(arguments)
    settings = settings_of(options)
    arms = arms_at(options.runs)
    points = points_of(arms)
    if options.last:
        points = list({point.run: point for point in points}.values())
    data = open_data(arms)
    study = build_study(data, settings)
    table = over_training(points, data, study, seed=settings.seed)
    out = Path(options.out)
    write_json(out / "summary.json", summary(points, table, study, settings))
    write_text(out / "tolerance.csv", table.to_csv(index=False, lineterminator="\n"))
    with style.look():
        style.save_figure(draw_tolerance(table, study), out / "tolerance.png")
    print(printed(table, study))
    print(f"written to {out}")


def over_training(points: Sequence[Point], data: Data, study: Study, *, seed: int) -> pd.DataFrame:
    """A row for each point: which it is, and the mean over items of every metric in both views.

    Where ``diverged`` is true the model's logits are not finite, and its metrics are NaN.
    Raises :class:`InputError` for a checkpoint that cannot be loaded, and if all have diverged.
    """
    shared = encode_study(study)
    weights = {point.run: logged_weight(point.member.run) for point in points}
    rows = []
    for number, point in enumerate(points, start=1):
        label = f"{point.run} step {point.step} ({number}/{len(points)})"
        model, encoded = load_member(point.member), encode_for(point.member, data, shared)
        try:
            values = _values(study, evaluate(model, encoded, label=label, entropy=math.nan, seed=seed))
        except Diverged:
            values = dict.fromkeys(_COLUMNS, math.nan)
        assert point.step is not None, "points_of gives it"
        near = weights[point.run]
        near = near[(near.index > point.step - WEIGHT_STEPS) & (near.index <= point.step)]
        rows.append(
            {
                **point.columns,
                "diverged": math.isnan(values["temperature_fitted"]),
                **values,
                "tfsd_weight": float(near.mean()) if len(near) else math.nan,
            }
        )
    if all(row["diverged"] for row in rows):
        raise InputError("all of these models have diverged; name runs with an earlier checkpoint")
    return pd.DataFrame(rows)


def _values(study: Study, result: ModelResult) -> dict[str, float]:
    found = [result.temperatures["fitted"], *(result.nll[view] for view in VIEWS_OVER_TRAINING)]
    found.append(float(finite_mean(result.distance_P)))
    for x in range(len(VIEWS_OVER_TRAINING)):
        found += [float(finite_mean(item_means(study, result.metrics[key][x].astype(np.float64)))) for key in KEYS]
    return dict(zip(_COLUMNS, found, strict=True))


def summary(points: Sequence[Point], table: pd.DataFrame, study: Study, settings: Settings) -> dict[str, Any]:
    """The contents of summary.json; ``table`` has a row for each point."""
    return {
        "models": [
            {
                **point.columns,
                "checkpoint": None if point.member.untrained else str(point.member.checkpoint),
                "diverged": bool(has_diverged),
            }
            for point, has_diverged in zip(points, table["diverged"], strict=True)
        ],
        "source": study.source,
        "counts": counts(study),
        "settings": asdict(settings),
        "views": {view: MEANINGS[view] for view in VIEWS_OVER_TRAINING},
        "metrics": {metric.key: metric.meaning for metric in METRICS} | OTHERS,
        "left_out": [asdict(entry) for entry in study.left_out],
    }


def printed(table: pd.DataFrame, study: Study) -> str:
    """The study, and of every arm the point before training and the first, middle and last that all its runs share."""
    keys = [key for key in _PRINTED if table[key].notna().any()]
    rows = []
    for arm, own in table.groupby("arm", sort=False):
        means = pd.DataFrame({key: mean_over_runs(own, key) for key in keys})
        trained = [tokens for tokens in means.index if tokens > 0]
        chosen = {0, trained[0], trained[len(trained) // 2], trained[-1]} if trained else {0}
        for tokens in sorted(chosen.intersection(means.index)):
            values = [(means[key][tokens], _PRINTED[key][1]) for key in keys]
            cells = ["" if math.isnan(value) else format(value, form) for value, form in values]
            rows.append([str(arm), str(own["run"].nunique()), f"{tokens:,}", *cells])
    return "\n".join(
        [
            *described(study),
            "",
            terminal_table(["arm", "runs", "tokens", *(_PRINTED[key][0] for key in keys)], rows),
            "",
            "Means over items and runs; 0 tokens: before training. fitted: log-odds at each model's own best temperature, as",
            "the shares of what the word leaves; distance: of synonyms' output embeddings over that of their controls.",
            *(diverged_line(row.run, row.step, row.tokens) for row in table[table["diverged"]].itertuples()),
        ]
    )


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
