"""Does a model give the synonym of the next word more of its probability than the baseline does?

    python -m analysis.synonyms --baseline RUN --candidate RUN... --out DIR [--pairs builtin|FILE]
        [--contexts-per-word N] [--min-contexts N] [--seed N]

Every model answers at the same places of the validation split. A flatter softmax gives every word more probability, so
the synonym is always held against control words of its own training frequency, and entropy and NLL stand beside it.
A pair is one statistical unit: means over pairs, with bootstrap intervals over pairs; differences are paired.

Writes summary.json, pairs.csv (a row for each pair and model) and synonyms.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from configs.errors import InputError, exit_status

from .bootstrap import CONFIDENCE, RESAMPLES, Estimate, estimate_mean
from .files import write_json, write_text
from .pairs import load_pairs
from .probe import Answers, Questions, ask
from .runs import resolve_checkpoint, run_directory, unique_labels
from .tables import terminal_table
from .words import CONTROLS, LeftOut, Study, plan_study, reasons


@dataclass(frozen=True)
class Metric:
    """A value of a pair: the mean over the contexts of both its words."""

    key: str
    heading: str
    form: str
    meaning: str


METRICS = (
    Metric("log_odds", "log-odds", ".3f", "ln p(synonym) minus the mean ln p(control), nats"),
    Metric("rank_auc", "rank AUC", ".3f", "share of the controls that rank below the synonym (0.5: no preference)"),
    Metric("log10_rank_synonym", "lg rank syn", ".3f", "log10 of the synonym's rank (0: most probable token)"),
    Metric("log10_rank_control", "lg rank ctl", ".3f", "the same for the controls, mean"),
    Metric("share_synonym", "share syn", ".2e", "p(synonym) / (1 - p(word)): share of what the word leaves"),
    Metric("share_control", "share ctl", ".2e", "the same for the controls, mean"),
    Metric("p_word", "p(word)", ".2e", "probability of the true next word"),
    Metric("p_synonym", "p(syn)", ".2e", "probability of its synonym"),
    Metric("p_control", "p(ctl)", ".2e", "probability of a control, mean"),
    Metric("joint", "joint p", ".2e", "joint probability of the pair"),
    Metric("entropy", "entropy", ".3f", "entropy of the predictive distribution, nats"),
    Metric("nll_word", "NLL", ".3f", "-ln p(true next word), nats"),
)
_EXAMPLES = 10


@dataclass(frozen=True)
class Source:
    """A model to measure: its label, its checkpoint, and the run it belongs to, if any."""

    label: str
    checkpoint: Path
    run: Path | None


@dataclass(frozen=True)
class Result:
    """What was measured: for each model one row of metric values per pair, and the means with intervals."""

    study: Study
    contexts: npt.NDArray[np.int64]
    """(pairs, 2): contexts used of each word."""
    per_pair: dict[str, pd.DataFrame]
    overall: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Estimate]]
    """Candidate minus baseline, over the same pairs."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    options = _parser().parse_args(arguments)
    for name in ("contexts_per_word", "min_contexts"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(options, name)}; give a whole number from 1")
    if options.seed < 0:
        raise InputError(f"--seed is {options.seed}; give a whole number from 0")
    pairs = load_pairs(options.pairs)
    sources = find_sources([options.baseline, *options.candidate])
    study = _plan(sources, pairs, options)
    result = measure(study, sources, seed=options.seed)
    out = Path(options.out)
    write_json(out / "summary.json", _summary(result, sources, options))
    write_text(out / "pairs.csv", pair_table(result).to_csv(index=False, lineterminator="\n"))
    _save_figure(result, out / "synonyms.png")
    print(report(result, options.pairs))
    print(f"\nwritten to {out}: summary.json, pairs.csv, synonyms.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis.synonyms", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--baseline", required=True, metavar="RUN", help="run (or a checkpoint of one); its data is used"
    )
    parser.add_argument("--candidate", required=True, nargs="+", metavar="RUN", help="runs or checkpoints to compare")
    parser.add_argument(
        "--pairs", default="builtin", metavar="builtin|FILE", help="CSV or TSV: word_a, word_b[, domain]"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--contexts-per-word", type=int, default=200, metavar="N", help="at most (default 200)")
    parser.add_argument("--min-contexts", type=int, default=5, metavar="N", help="of one word of a pair (default 5)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the choice of contexts and of the bootstrap (default 0)"
    )
    return parser


# ----------------------------------------------------------------------------------------------------------- the models


def find_sources(paths: Sequence[str]) -> list[Source]:
    """The models behind ``paths``, the baseline first. Raises :class:`InputError` with all that is wrong with them."""
    found: list[tuple[str, Path, Path | None]] = []
    problems: list[str] = []
    for index, path in enumerate(paths):
        try:
            checkpoint = resolve_checkpoint(path)
        except InputError as error:
            problems.extend(error.problems)
            continue
        try:
            run: Path | None = run_directory(checkpoint)
        except InputError:
            run = None  # a checkpoint from elsewhere is as good, but only a run says which data to use
        if index == 0 and run is None:
            problems.append(f"--baseline {path} belongs to no run, whose config.yaml names the data; give a run")
        found.append((run.name if run else checkpoint.name, checkpoint, run))
    if problems:
        raise InputError(*problems)
    labels = unique_labels([name for name, _, _ in found], paths)
    return [Source(label, checkpoint, run) for label, (_, checkpoint, run) in zip(labels, found, strict=True)]


def _plan(sources: Sequence[Source], pairs: list[Any], options: argparse.Namespace) -> Study:
    """Open the baseline's data, check the tokenizers, and choose what to ask."""
    from configs.load import load_config
    from data.store import open_store

    # Every run's configuration is loaded, because that registers the heads of its plugins.
    data, *_ = [load_config(source.run / "config.yaml").data for source in sources if source.run]
    store = open_store(data, progress=True)
    tokenizer = store.load_tokenizer()
    check_tokenizers(tokenizer, sources)
    return plan_study(
        pairs,
        tokenizer,
        store.train.ids,
        store.validation.ids,
        sequence_length=data.sequence_length,
        min_contexts=options.min_contexts,
        contexts_per_word=options.contexts_per_word,
        seed=options.seed,
    )


def check_tokenizers(tokenizer: Any, sources: Sequence[Source]) -> None:
    """Raise :class:`InputError` for each checkpoint whose tokenizer does not give the ids of ``tokenizer``."""
    from transformers import AutoTokenizer

    problems = []
    for source in sources:
        try:
            own = AutoTokenizer.from_pretrained(source.checkpoint, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError):
            problems.append(
                f"{source.checkpoint} has no tokenizer that can be loaded; save the tokenizer beside the model"
            )
            continue
        if own.get_vocab() != tokenizer.get_vocab():
            problems.append(
                f"{source.checkpoint} has another tokenizer than the baseline's data "
                f"({len(own)} and {len(tokenizer)} tokens); compare models that share one"
            )
    if problems:
        raise InputError(*problems)


def measure(study: Study, sources: Sequence[Source], *, seed: int, progress: bool = True) -> Result:
    """Ask every model, the baseline first, and compare. Raises :class:`InputError` for a model that cannot be used."""
    import torch
    from transformers.utils import logging

    from model import load_model

    logging.disable_progress_bar()  # of the weights: the one worth seeing is that of the contexts
    questions = Questions.of(study)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    per_pair: dict[str, pd.DataFrame] = {}
    for source in sources:
        try:
            model: Any = load_model(source.checkpoint)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{source.checkpoint} cannot be loaded as a causal language model: {reason}") from error
        answers = ask(model.to(device), study, questions, label=source.label, progress=progress)
        per_pair[source.label] = pair_means(study, questions, answers)
        del model
    return compare(study, per_pair, seed)


# ------------------------------------------------------------------------------------------------------- the statistics


def pair_means(study: Study, questions: Questions, answers: Answers) -> pd.DataFrame:
    """The mean of each metric over the contexts of both words; a row for each pair of the study."""
    log_p, log_share, rank = answers.log_p_MK, answers.log_share_MK, answers.rank_MK
    p = np.exp(log_p)
    below = (rank[:, 2:] > rank[:, 1:2]) + 0.5 * (rank[:, 2:] == rank[:, 1:2])
    values = {
        "log_odds": log_p[:, 1] - log_p[:, 2:].mean(1),
        "rank_auc": below.mean(1),
        "log10_rank_synonym": np.log10(rank[:, 1]),
        "log10_rank_control": np.log10(rank[:, 2:]).mean(1),
        "share_synonym": np.exp(log_share[:, 1]),
        "share_control": np.exp(log_share[:, 2:]).mean(1),
        "p_word": p[:, 0],
        "p_synonym": p[:, 1],
        "p_control": p[:, 2:].mean(1),
        "joint": p[:, 0] + p[:, 1],
        "entropy": answers.entropy_M,
        "nll_word": -log_p[:, 0],
    }
    pair_M = np.array([unit.pair for unit in study.units])[questions.unit_M]
    count = np.bincount(pair_M, minlength=len(study.pairs))
    return pd.DataFrame({m.key: np.bincount(pair_M, values[m.key], len(study.pairs)) / count for m in METRICS})


def compare(study: Study, per_pair: dict[str, pd.DataFrame], seed: int) -> Result:
    """Means over pairs with intervals, and the paired differences of each later model to the first."""
    baseline, *candidates = per_pair
    overall = {
        label: {m.key: estimate_mean(table[m.key].to_numpy(), seed) for m in METRICS}
        for label, table in per_pair.items()
    }
    differences = {
        label: {
            m.key: estimate_mean((per_pair[label][m.key] - per_pair[baseline][m.key]).to_numpy(), seed) for m in METRICS
        }
        for label in candidates
    }
    sizes = np.array([len(study.places[unit.word]) for unit in study.units], dtype=np.int64).reshape(-1, 2)
    return Result(study, sizes, per_pair, overall, differences)


# ----------------------------------------------------------------------------------------------------------- the output


def pair_table(result: Result) -> pd.DataFrame:
    """A row for each pair and model: the words, domain, controls, contexts, model and metrics."""
    study = result.study
    words = [
        [" ".join(study.vocabulary.text[i].strip() for i in unit.controls) for unit in study.units[k::2]]
        for k in (0, 1)
    ]
    shared = pd.DataFrame(
        {
            "word_a": [pair.word_a for pair in study.pairs],
            "word_b": [pair.word_b for pair in study.pairs],
            "domain": [pair.domain for pair in study.pairs],
            "contexts_a": result.contexts[:, 0],
            "contexts_b": result.contexts[:, 1],
            "controls_of_b": words[0],  # the first unit of a pair asks for b where a is the true word
            "controls_of_a": words[1],
        }
    )
    tables = [pd.concat([shared.assign(model=label), table], axis=1) for label, table in result.per_pair.items()]
    return pd.concat(tables, ignore_index=True)


def report(result: Result, pairs_source: str) -> str:
    """The printed tables."""
    study, labels = result.study, list(result.per_pair)
    n = len(study.pairs)
    overall = [[label, *(format(result.overall[label][m.key].mean, m.form) for m in METRICS)] for label in labels]
    changes = [
        [m.heading, *(result.differences[label][m.key].format(f"+{m.form}") for label in labels[1:])] for m in METRICS
    ]
    best = np.argsort(-result.contexts.sum(1), kind="stable")[:_EXAMPLES]
    examples = [
        [
            str(study.pairs[i]),
            str(result.contexts[i].sum()),
            *(f"{result.per_pair[m]['log_odds'][i]:.2f}" for m in labels),
        ]
        for i in best
    ]
    parts = [
        f"{n + len(study.left_out)} pairs ({pairs_source}), {n} used; {result.contexts.sum()} contexts "
        f"({len(study.all_places)} distinct); {CONTROLS} control words for each synonym",
        *_left_out_lines(study.left_out),
        f"\nMean over {n} pairs, {result.contexts.sum()} contexts",
        terminal_table(["model", *(m.heading for m in METRICS)], overall),
        f"\nDifference to {labels[0]}, mean over {n} pairs [{CONFIDENCE:.0%} bootstrap interval over pairs]",
        terminal_table(["metric", *labels[1:]], changes),
        "\nLog-odds of the pairs with the most contexts",
        terminal_table(["pair", "contexts", *labels], examples),
        "",
        *(f"{m.heading:14} {m.meaning}" for m in METRICS),
    ]
    return "\n".join(parts)


def _left_out_lines(left_out: Sequence[LeftOut]) -> list[str]:
    if not left_out:
        return []
    lines = [f"left out {len(left_out)} pairs ({reasons(left_out)}); the reason for each is in summary.json"]
    named = ", ".join(str(entry.pair) for entry in left_out[:_EXAMPLES])
    return [*lines, f"  {named}{', ...' if len(left_out) > _EXAMPLES else ''}"]


def _summary(result: Result, sources: Sequence[Source], options: argparse.Namespace) -> dict[str, Any]:
    study = result.study
    return {
        "baseline": sources[0].label,
        "models": [{"label": s.label, "checkpoint": str(s.checkpoint), "step": _step(s.checkpoint)} for s in sources],
        "counts": {
            "pairs_given": len(study.pairs) + len(study.left_out),
            "pairs_used": len(study.pairs),
            "pairs_left_out": len(study.left_out),
            "contexts": int(result.contexts.sum()),
            "distinct_contexts": len(study.all_places),
            "controls_per_synonym": CONTROLS,
        },
        "settings": {
            "pairs": options.pairs,
            "contexts_per_word": options.contexts_per_word,
            "min_contexts": options.min_contexts,
            "sequence_length": study.sequence_length,
            "seed": options.seed,
            "interval": f"{CONFIDENCE:.0%} BCa bootstrap over pairs, {RESAMPLES} resamples",
        },
        "metrics": {m.key: m.meaning for m in METRICS},
        "overall": {label: {k: asdict(e) for k, e in row.items()} for label, row in result.overall.items()},
        "differences": {label: {k: asdict(e) for k, e in row.items()} for label, row in result.differences.items()},
        "left_out": [
            {"word_a": e.pair.word_a, "word_b": e.pair.word_b, "domain": e.pair.domain, "reason": e.reason}
            for e in study.left_out
        ],
    }


def _step(checkpoint: Path) -> int | None:
    """The training step of a checkpoint, if it says."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    step = state.get("step") if isinstance(state, dict) else None
    return step if isinstance(step, int) else None


def _save_figure(result: Result, path: Path) -> None:
    from . import style
    from .synonyms_figure import draw_synonyms

    with style.look():
        style.save_figure(draw_synonyms(result.per_pair, result.differences, int(result.contexts.sum())), path)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
