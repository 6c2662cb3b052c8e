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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from configs.errors import ArgumentParser, InputError, exit_status

from .files import write_json, write_text
from .probing.arms import Arm, Member, checkpoints_up_to, find_arms, load_member, untrained_arm
from .probing.ask import Asked, Data, Settings, ask, encode_for, open_data, plan
from .probing.compare import finite_mean, item_means
from .probing.counts import counts, described
from .probing.encode import Encoded, encode_study
from .probing.measures import KEYS, METRICS
from .probing.states import Diverged
from .probing.study import Study
from .probing.views import MEANINGS, OVER_TRAINING
from .probing.weight import WEIGHT, logged_weight
from .runs import checkpoint_state, read_config
from .synonyms import add_settings, settings_of
from .tables import terminal_table

CONTEXTS_PER_WORD = 20
"""Unless more are asked for: there are many checkpoints."""
WEIGHT_STEPS = 20
"""Steps up to a checkpoint over which the logged c, itself a mean over the tokens of one batch, is averaged."""
_OTHERS = {
    "temperature_fitted": "temperature at which the model predicts held-out text best",
    "nll": "mean negative log-likelihood on a sample of held-out text, nats per token",
    "distance_ratio": "distance of synonyms' output embeddings over that of their controls, mean over items of single tokens",
    "tfsd_weight": f"{WEIGHT} as logged in training, mean over the {WEIGHT_STEPS} steps up to the checkpoint",
}
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


@dataclass(frozen=True)
class Point:
    """A model at one time of its training."""

    arm: str
    run: str
    """The label of the arm's member."""
    member: Member
    """With the checkpoint of that time, or untrained."""
    step: int
    tokens: int


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


def points_of(arms: Sequence[Arm]) -> list[Point]:
    """What is asked, in the order of arms, members and tokens.

    Raises :class:`InputError` naming each model that belongs to no run and each checkpoint that does not say its tokens.
    """
    points: list[Point] = []
    problems: list[str] = []
    for arm in arms:
        for member in arm.members:
            try:
                checkpoints = checkpoints_up_to(member)
            except InputError as error:
                problems.extend(error.problems)
                continue
            assert member.run is not None, "it has checkpoints"
            if _starts_fresh(member.run):
                (before,) = untrained_arm(Arm(arm.label, (member,))).members
                points.append(Point(arm.label, member.label, before, step=0, tokens=0))
            for step, path in checkpoints:
                tokens = checkpoint_state(path).get("tokens")
                if type(tokens) is int:
                    points.append(Point(arm.label, member.label, replace(member, checkpoint=path), step, tokens))
                else:
                    problems.append(
                        f"{path / 'trainer_state.json'} has no whole number under 'tokens'; remove that checkpoint"
                    )
    if problems:
        raise InputError(*problems)
    return points


def _starts_fresh(run: Path) -> bool:
    """Whether the run began with weights drawn from its seed, and not with those of another checkpoint."""
    body = read_config(run).get("body")
    return not (isinstance(body, dict) and body.get("checkpoint"))


def over_training(
    points: Sequence[Point], data: Data, study: Study, *, seed: int, progress: bool = True
) -> pd.DataFrame:
    """A row for each point: which it is, and the mean over items of every metric in both views.

    The column of a metric is its key, with ``_fitted`` behind it in the view of that name. Nothing else is kept of a model's
    answers. Where ``diverged`` is true the model's logits are not finite, and its metrics are NaN.
    Raises :class:`InputError` for a checkpoint that cannot be loaded, and if all have diverged.
    """
    shared = encode_study(study, data.tokenizer, None)
    weights = {point.run: logged_weight(point.member.run) for point in points}
    rows = []
    for number, point in enumerate(points, start=1):
        label = f"{point.run} step {point.step} ({number}/{len(points)})"
        model, encoded = load_member(point.member), encode_for(point.member, data, study, shared)
        asked = _ask_unless_diverged(model, encoded, label=label, seed=seed, progress=progress)
        near = weights[point.run]
        near = near[(near.index > point.step - WEIGHT_STEPS) & (near.index <= point.step)]
        rows.append(
            {
                "arm": point.arm,
                "run": point.run,
                "seed": point.member.seed,
                "step": point.step,
                "tokens": point.tokens,
                "diverged": asked is None,
                **(dict.fromkeys(_COLUMNS, math.nan) if asked is None else _values(study, asked)),
                "tfsd_weight": float(near.mean()) if len(near) else math.nan,
            }
        )
    if all(row["diverged"] for row in rows):
        raise InputError("all of these models have diverged; name runs with an earlier checkpoint")
    return pd.DataFrame(rows)


def _ask_unless_diverged(model: Any, encoded: Encoded, *, label: str, seed: int, progress: bool) -> Asked | None:
    """The model's answers, or None if its logits are not finite: that is a result of its training and no mistake of the user."""
    try:
        return ask(model, encoded, label=label, entropy=math.nan, seed=seed, progress=progress)
    except Diverged:
        return None


def _column(key: str, view: str) -> str:
    return key if view == "raw" else f"{key}_{view}"


_COLUMNS = (
    "temperature_fitted",
    *(_column("nll", view) for view in OVER_TRAINING),
    "distance_ratio",
    *(_column(key, view) for view in OVER_TRAINING for key in KEYS),
)
"""Of a point's answers."""


def _values(study: Study, asked: Asked) -> dict[str, float]:
    found = {"temperature_fitted": asked.temperatures["fitted"]}
    found |= {_column("nll", view): asked.nll[view] for view in OVER_TRAINING}
    found["distance_ratio"] = float(finite_mean(asked.distance_P))
    for x, view in enumerate(OVER_TRAINING):
        for key, value_XM in asked.measures.items():
            value_P = item_means(study, value_XM[x].astype(np.float64), ~study.shuffled_M)
            found[_column(key, view)] = float(finite_mean(value_P))
    return found


# -------------------------------------------------------------------------------------------------------------- output


def mean_over_runs(rows: pd.DataFrame, key: str) -> pd.Series:
    """Of one arm's rows: the mean of ``key`` by tokens, where every one of its runs has a checkpoint.

    A mean over whichever runs have one would jump where a run comes in or drops out. NaN where one of them has diverged.
    """
    groups = rows.groupby("tokens")
    mean: pd.Series = groups[key].mean().mask(groups["diverged"].any())
    return mean[groups.size() == rows["run"].nunique()]


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
        "metrics": {metric.key: metric.meaning for metric in METRICS} | _OTHERS,
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
    from . import style
    from .tolerance_figure import draw_tolerance

    with style.look():
        style.save_figure(draw_tolerance(table, study), path)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
