"""Does a model give the synonyms of the next word more of its probability than the baseline does?

    python -m analysis.synonyms --baseline RUN... --candidate RUN... --out DIR
        [--pairs builtin|wordnet|wordnet:FOLDER|FILE] [--match-pos wordnet|wordnet:FOLDER] [--min-similarity S]
        [--contexts-per-word N] [--min-contexts N] [--seed N] [--no-untrained] [--tables]

RUN is a run directory, a checkpoint directory, or the directory of any transformers causal LM. Runs that differ only in the seed
form one arm. FILE is a list of pairs (CSV, TSV, SimLex-999, WordSim-353) or of substitutions (SWORDS, CoInCo).
docs/synonyms.md says what is measured and what each number can show.

Prints the leading metric, and writes tables.txt (all metrics, with intervals; --tables prints them too), summary.json,
pairs.csv (a row for each item and arm), contexts.parquet (for each model and context) and synonyms.png.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.compare.arms import arms_differ_in, compared_arms, untrained_arm
from analysis.show import style
from common.command import ArgumentParser, exit_status
from common.files import write_json, write_text

from .build_study import build_study
from .compare import compare
from .figure import draw_synonyms
from .measure_models import evaluate_arms, open_data
from .options import add_settings, settings_of
from .report import brief, item_table, printed, summary, write_contexts


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m analysis.synonyms", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--baseline", required=True, nargs="+", metavar="RUN", help="runs of one arm")
    parser.add_argument("--candidate", required=True, nargs="+", metavar="RUN", help="runs or checkpoints to compare")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--no-untrained", action="store_true", help="leave out the untrained model")
    parser.add_argument("--tables", action="store_true", help="print all tables, which are in DIR/tables.txt too")
    add_settings(parser)
    options = parser.parse_args(arguments)
    settings = settings_of(options)
    arms = compared_arms(options.baseline, options.candidate)
    if not options.no_untrained:
        arms.append(untrained_arm(arms[0], arms))
    data = open_data(arms)
    study = build_study(data, settings)
    found = compare(study, arms, evaluate_arms(arms, data, study, seed=settings.seed), seed=settings.seed)
    out = Path(options.out)
    write_json(out / "summary.json", summary(found, settings))
    write_text(out / "pairs.csv", item_table(found).to_csv(index=False, lineterminator="\n"))
    write_contexts(found, out / "contexts.parquet")
    with style.look():
        style.save_figure(draw_synonyms(found), out / "synonyms.png")
    tables = "\n".join([printed(found, out), *arms_differ_in(arms)])
    write_text(out / "tables.txt", f"{tables}\n")
    print(f"{tables}\n\n{brief(found, out)}" if options.tables else brief(found, out))


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
