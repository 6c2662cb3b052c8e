"""How far are models from the truth on the synonym grammar: on the sets of synonyms, within them, and in all?

    python -m analysis.grammar --baseline RUN... --candidate RUN... --out DIR
        [--documents N] [--over-training] [--seed N]

Runs that differ in the seed alone form an arm. Documents of their validation split are read from the first token, after an
end of text, and cut to data.sequence_length; at every position the model's distribution is held against the true one. All
means over the contexts of a set are weighted by its true joint probability: they are exact expectations over the contexts
in which the set comes next, and do not depend on which of its words was drawn. Every model is seen as it is, at its best
temperature, and at the entropy of the baseline; differences are paired by seed, document and set.

Writes summary.json, sets.csv (a row for each set, arm and view), contexts.parquet (single contexts), truth.png; with
--over-training also training.csv and training.png: the same at every checkpoint, on fewer documents. There a checkpoint that
has diverged is named and has no values.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.files import write_json, write_text

if TYPE_CHECKING:
    import pandas as pd

    from analysis.compare.arms import Member

    from .study import Result


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    options = _parser().parse_args(arguments)
    if options.documents < 2:
        raise InputError(f"--documents is {options.documents}; give a whole number from 2")
    if options.seed < 0:
        raise InputError(f"--seed is {options.seed}; give a whole number from 0")
    from analysis.compare.arms import compared_arms

    from .study import compare, plan

    arms = compared_arms(options.baseline, options.candidate)
    study = plan(arms, documents=options.documents, seed=options.seed)
    result = compare(study, arms, seed=options.seed)
    training = None
    if options.over_training:
        from .over_training import over_training

        training = over_training(study, arms)
    _write(result, training, options)


def _parser() -> ArgumentParser:
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
    return parser


# --------------------------------------------------------------------------------------------------------------- output


def _write(result: Result, training: pd.DataFrame | None, options: argparse.Namespace) -> None:
    from analysis.compare.arms import arms_differ_in
    from analysis.show import style
    from common.files import write_atomically

    from .figure import draw_training, draw_truth
    from .report import context_table, report, set_table

    out = Path(options.out)
    names = ["summary.json", "sets.csv", "contexts.parquet", "truth.png"]
    write_json(out / "summary.json", summary(result, training, options))
    write_text(out / "sets.csv", set_table(result).to_csv(index=False, lineterminator="\n"))
    contexts = context_table(result)
    write_atomically(out / "contexts.parquet", lambda file: contexts.to_parquet(file, index=False))
    with style.look():
        style.save_figure(draw_truth(result), out / "truth.png")
        if training is not None:
            write_text(out / "training.csv", training.to_csv(index=False, lineterminator="\n"))
            style.save_figure(draw_training(training, [arm.label for arm in result.arms]), out / "training.png")
            names += ["training.csv", "training.png"]
    lines = [report(result), "", *arms_differ_in(result.arms)]
    if training is not None:
        from .over_training import diverged_lines

        lines += diverged_lines(training)
    print("\n".join(lines))
    print(f"written to {out}: {', '.join(names)}")


def summary(result: Result, training: pd.DataFrame | None, options: argparse.Namespace) -> dict[str, Any]:
    """All of summary.json."""
    from analysis.compare.metric import MEANINGS_WITH_TRUTH

    from .report import counts
    from .truth import SET_METRICS, TEXT_METRICS

    study = result.study
    first = result.scores[result.arms[0].members[0].label]
    return {
        "baseline": result.arms[0].label,
        "arms": [
            {"label": arm.label, "members": [_described(member, result) for member in arm.members]}
            for arm in result.arms
        ],
        "counts": counts(result),
        "settings": {
            "documents": options.documents,
            "seed": options.seed,
            "grammar_seed": study.data.options["seed"],
            "sequence_length": study.data.sequence_length,
        },
        "views": MEANINGS_WITH_TRUTH,
        "metrics": {metric.key: metric.meaning for metric in (*SET_METRICS, *TEXT_METRICS)},
        "truth": {key: float(value_D.sum() / first.position_D.sum()) for key, value_D in first.truth.items()},
        "text": {label: _effects(table.text) for label, table in result.tables.items()},
        "sets": {label: _effects(table.sets) for label, table in result.tables.items()},
        "differences": {
            label: {"text": _effects(table.text), "sets": _effects(table.sets), "wilcoxon_p": table.wilcoxon}
            for label, table in result.differences.items()
        },
        "training": None if training is None else training.to_dict(orient="records"),
    }


def _described(member: Member, result: Result) -> dict[str, Any]:
    return {
        "label": member.label,
        "checkpoint": str(member.checkpoint),
        "seed": member.seed,
        "temperatures": result.temperatures[member.label],
        "tfsd_weight": result.weights.get(member.label),
    }


def _effects(nested: dict[str, Any]) -> dict[str, Any]:
    """The same with effects as dictionaries."""
    return {key: _effects(value) if isinstance(value, dict) else asdict(value) for key, value in nested.items()}


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
