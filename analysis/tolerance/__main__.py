"""Synonym tolerance against tokens: what analysis.synonyms asks, asked of every checkpoint of the runs.

    python -m analysis.tolerance RUN... --out DIR
        [--pairs builtin|wordnet|wordnet:FOLDER|FILE] [--match-pos wordnet|wordnet:FOLDER] [--min-similarity S]
        [--contexts-per-word N] [--min-contexts N] [--seed N]

Runs that differ in nothing but the seed are one arm. Of a run that is named by a checkpoint, the checkpoints up to that one
are asked. All answer the same questions at the same places. A run's model before training, with the fresh weights of its
seed, stands at 0 tokens; a run that began from another model's weights has no such point.

Every checkpoint is seen as it is and at its own best temperature; a number that is higher in the first view alone came with a
flatter softmax. Beside them the distance of synonyms' output embeddings over that of their controls (semantic fracturing)
and, where it was logged, the TFSD weight c. The spread between seeds is all that is shown of the uncertainty here; intervals and
tests are those of analysis.synonyms, at one checkpoint. A checkpoint that has diverged is named and has no values.

Writes summary.json, tolerance.csv (a row for each run and checkpoint) and tolerance.png.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.compare.arms import find_arms
from analysis.compare.metric import MEANINGS, OVER_TRAINING
from analysis.probes.over_training import Point, mean_over_runs, points_of
from analysis.show.tables import terminal_table
from analysis.synonyms.measure_models import Settings, open_data, plan
from analysis.synonyms.measures import METRICS
from analysis.synonyms.options import add_settings, settings_of
from analysis.synonyms.report import counts, described
from analysis.synonyms.study import Study
from common.command import ArgumentParser, exit_status
from common.files import write_json, write_text

from .over_training import OTHERS, over_training

CONTEXTS_PER_WORD = 20
"""Unless more are asked for: there are many checkpoints."""
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
    options = _parser().parse_args(arguments)
    settings = settings_of(options)
    arms = find_arms(options.runs)
    points = points_of(arms)
    data = open_data(arms)
    study = plan(data, settings)
    table = over_training(points, data, study, seed=settings.seed)
    out = Path(options.out)
    write_json(out / "summary.json", summary(points, table, study, settings))
    write_text(out / "tolerance.csv", table.to_csv(index=False, lineterminator="\n"))
    _save_figure(table, study, out / "tolerance.png")
    print(printed(table, study))
    print(f"written to {out}")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m analysis.tolerance", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory, or a checkpoint directory in one")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    add_settings(parser, CONTEXTS_PER_WORD)
    return parser


# -------------------------------------------------------------------------------------------------------------- asking


# -------------------------------------------------------------------------------------------------------------- output


def summary(points: Sequence[Point], table: pd.DataFrame, study: Study, settings: Settings) -> dict[str, Any]:
    """What was asked of whom, as JSON; the answers are in tolerance.csv, of which ``table`` has a row for each point."""
    return {
        "models": [
            {
                "arm": point.arm,
                "run": point.run,
                "seed": point.member.seed,
                "step": point.step,
                "tokens": point.tokens,
                "checkpoint": None if point.member.untrained else str(point.member.checkpoint),
                "diverged": bool(has_diverged),
            }
            for point, has_diverged in zip(points, table["diverged"], strict=True)
        ],
        "source": study.source,
        "counts": counts(study),
        "settings": asdict(settings),
        "views": {view: MEANINGS[view] for view in OVER_TRAINING},
        "metrics": {metric.key: metric.meaning for metric in METRICS} | OTHERS,
        "left_out": [asdict(entry) for entry in study.left_out],
    }


def printed(table: pd.DataFrame, study: Study) -> str:
    """The study, and of every arm the point before training and the first, middle and last that all its runs share."""
    keys = [key for key in _PRINTED if table[key].notna().any()]
    lines = []
    for arm, rows in table.groupby("arm", sort=False):
        means = pd.DataFrame({key: mean_over_runs(rows, key) for key in keys})
        trained = [tokens for tokens in means.index if tokens > 0]
        chosen = {0, trained[0], trained[len(trained) // 2], trained[-1]} if trained else {0}
        for tokens in sorted(chosen.intersection(means.index)):
            cells = [
                "" if math.isnan(means[key][tokens]) else format(means[key][tokens], _PRINTED[key][1]) for key in keys
            ]
            lines.append([str(arm), str(rows["run"].nunique()), f"{tokens:,}", *cells])
    return "\n".join(
        [
            *described(study),
            "",
            terminal_table(["arm", "runs", "tokens", *(_PRINTED[key][0] for key in keys)], lines),
            "",
            "Means over items and runs; 0 tokens: before training. fitted: log-odds at each model's own best temperature, as",
            "the shares of what the word leaves; distance: of synonyms' output embeddings over that of their controls.",
            *(
                f"{row.run} step {row.step} ({row.tokens:,} tokens) has diverged: its logits are not finite; it has no values"
                for row in table[table["diverged"]].itertuples()
            ),
        ]
    )


def _save_figure(table: pd.DataFrame, study: Study, path: Path) -> None:
    from analysis.show import style

    from .figure import draw_tolerance

    with style.look():
        style.save_figure(draw_tolerance(table, study), path)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
