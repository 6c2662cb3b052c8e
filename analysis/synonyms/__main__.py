"""Does a model give the synonyms of the next word more of its probability than the baseline does?

    python -m analysis.synonyms --baseline RUN... --candidate RUN... --out DIR
        [--pairs builtin|wordnet|wordnet:FOLDER|FILE] [--match-pos wordnet|wordnet:FOLDER] [--min-similarity S]
        [--contexts-per-word N] [--min-contexts N] [--seed N] [--no-untrained] [--tables]

RUN is a run directory, a checkpoint directory, or the directory of any transformers causal LM (a guest). Runs that differ in
nothing but the seed are one arm. FILE is a list of pairs (CSV, TSV, SimLex-999, WordSim-353) or of substitutions (SWORDS,
CoInCo).

Every model answers at the same places of held-out text. A flatter softmax gives every word more probability and a frequent
word has more anywhere; so synonyms are held against control words as frequent and as long, against antonyms and rejected
words, at places of other words and in an untrained model, and every model is seen as it is, at its own best temperature, and
at the baseline's entropy. docs/synonyms.md says what each number can show.

Prints the metric that leads, and writes tables.txt (all metrics, with intervals; --tables prints them too), summary.json,
pairs.csv (a row for each item and arm), contexts.parquet (for each model and context) and synonyms.png.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.compare.arms import arms_differ_in, compared_arms, untrained_arm
from common.command import ArgumentParser, exit_status
from common.files import write_json, write_text

from .compare import Comparison, compare
from .measure_models import ask_all, open_data, plan
from .options import add_settings, settings_of
from .report import brief, item_table, printed, summary, write_contexts


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    options = _parser().parse_args(arguments)
    settings = settings_of(options)
    arms = compared_arms(options.baseline, options.candidate)
    if not options.no_untrained:
        arms.append(untrained_arm(arms[0], arms))
    data = open_data(arms)
    study = plan(data, settings)
    asked = ask_all(arms, data, study, seed=settings.seed)
    found = compare(
        study,
        arms,
        {label: one.measures for label, one in asked.items()},
        {label: one.temperatures for label, one in asked.items()},
        seed=settings.seed,
        progress=lambda label: print(f"comparing {label}", file=sys.stderr),
    )
    out = Path(options.out)
    write_json(out / "summary.json", summary(found, asked, settings))
    write_text(out / "pairs.csv", item_table(found, asked).to_csv(index=False, lineterminator="\n"))
    write_contexts(found, out / "contexts.parquet")
    _save_figure(found, out / "synonyms.png")
    tables = "\n".join([printed(found, asked, out), *arms_differ_in(arms)])
    write_text(out / "tables.txt", f"{tables}\n")
    print(f"{tables}\n\n{brief(found, out)}" if options.tables else brief(found, out))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m analysis.synonyms", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--baseline", required=True, nargs="+", metavar="RUN", help="runs of one arm")
    parser.add_argument("--candidate", required=True, nargs="+", metavar="RUN", help="runs or checkpoints to compare")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--no-untrained", action="store_true", help="leave out the untrained model")
    parser.add_argument("--tables", action="store_true", help="print all tables, which are in DIR/tables.txt too")
    add_settings(parser)
    return parser


def _save_figure(found: Comparison, path: Path) -> None:
    from analysis.show import style

    from .figure import draw_synonyms

    with style.look():
        style.save_figure(draw_synonyms(found), path)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
