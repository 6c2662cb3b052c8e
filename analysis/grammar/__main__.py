"""How far are models from the truth on the synonym grammar: over sets of synonyms, within them, and as a whole?

    python -m analysis.grammar --baseline RUN... --candidate RUN... --out DIR
        [--documents N] [--over-training] [--seed N]

Runs that differ only in the seed form an arm. At every position of documents of their validation split the model's distribution
is compared with the true one; docs/synonyms.md says how, and what each number can show.

Writes summary.json, sets.csv (a row for each set, arm and view), contexts.parquet (single contexts), truth.png; with
--over-training also training.csv and training.png: the same at every checkpoint, on fewer documents. A checkpoint that has
diverged is named and has no values there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.compare.arms import Member, arms_differ_in, compared_arms, diverged_line
from analysis.compare.statistics import as_dicts
from analysis.compare.temperature import MEANINGS_WITH_TRUTH
from analysis.show import style
from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.files import write_atomically, write_json, write_text

from .compare import Result, compare, over_training
from .figure import draw_training, draw_truth
from .report import context_table, counts, first_scores, report, set_table
from .study import build_study
from .truth import SET_METRICS, TEXT_METRICS


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m analysis.grammar", description=(__doc__ or "").partition("\n")[0])
    runs = "runs or checkpoints of runs on the grammar"
    parser.add_argument("--baseline", required=True, nargs="+", metavar="RUN", help=f"{runs}; one arm, over seeds")
    parser.add_argument("--candidate", required=True, nargs="+", metavar="RUN", help=f"{runs}, of any number of arms")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--documents", type=int, default=400, metavar="N", help="measured, at most (default 400)")
    parser.add_argument("--over-training", action="store_true", help="measure every checkpoint of the runs too")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the choice of documents and of the bootstrap (default 0)"
    )
    options = parser.parse_args(arguments)
    for name, least in (("documents", 2), ("seed", 0)):
        if getattr(options, name) < least:
            raise InputError(f"--{name} is {getattr(options, name)}; give a whole number from {least}")
    arms = compared_arms(options.baseline, options.candidate)
    study = build_study(arms, documents=options.documents, seed=options.seed)
    result = compare(study, arms, seed=options.seed)
    training = over_training(study, arms) if options.over_training else None
    out = Path(options.out)
    names = ["summary.json", "sets.csv", "contexts.parquet", "truth.png"]
    lines = [report(result), "", *arms_differ_in(result.arms)]
    write_json(out / "summary.json", summary(result, training, options))
    write_text(out / "sets.csv", set_table(result).to_csv(index=False, lineterminator="\n"))
    write_atomically(out / "contexts.parquet", lambda file: context_table(result).to_parquet(file, index=False))
    with style.look():
        style.save_figure(draw_truth(result), out / "truth.png")
        if training is not None:
            write_text(out / "training.csv", training.to_csv(index=False, lineterminator="\n"))
            style.save_figure(draw_training(training, [arm.label for arm in result.arms]), out / "training.png")
            names += ["training.csv", "training.png"]
            diverged = training[training["diverged"]].drop_duplicates(["label", "step"])
            lines += [diverged_line(row.label, row.step, row.tokens) for row in diverged.itertuples()]
    print("\n".join([*lines, f"written to {out}: {', '.join(names)}"]))


def summary(result: Result, training: pd.DataFrame | None, options: argparse.Namespace) -> dict[str, Any]:
    """The contents of summary.json."""
    data, first = result.study.data, first_scores(result)
    return {
        "baseline": result.arms[0].label,
        "arms": [
            {"label": arm.label, "members": [_member_entry(member, result) for member in arm.members]}
            for arm in result.arms
        ],
        "counts": counts(result),
        "settings": {
            "documents": options.documents,
            "seed": options.seed,
            "grammar_seed": data.options["seed"],
            "sequence_length": data.sequence_length,
        },
        "views": MEANINGS_WITH_TRUTH,
        "metrics": {metric.key: metric.meaning for metric in (*SET_METRICS, *TEXT_METRICS)},
        "truth": {key: float(value_D.sum() / first.position_D.sum()) for key, value_D in first.truth.items()},
        "text": {label: as_dicts(table.text) for label, table in result.tables.items()},
        "sets": {label: as_dicts(table.sets) for label, table in result.tables.items()},
        "differences": {
            label: {"text": as_dicts(table.text), "sets": as_dicts(table.sets), "wilcoxon_p": table.wilcoxon}
            for label, table in result.differences.items()
        },
        "training": None if training is None else training.to_dict(orient="records"),
    }


def _member_entry(member: Member, result: Result) -> dict[str, Any]:
    return {
        "label": member.label,
        "checkpoint": str(member.checkpoint),
        "seed": member.seed,
        "temperatures": result.temperatures[member.label],
        "tfsd_weight": result.weights.get(member.label),
    }


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
