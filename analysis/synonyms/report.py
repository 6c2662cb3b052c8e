"""The output of a comparison: printed tables, summary.json, pairs.csv and contexts.parquet."""

from __future__ import annotations

import itertools
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.compare.arms import Arm, Member
from analysis.compare.metric import Metric
from analysis.compare.statistics import CAVEATS, CONFIDENCE, INTERVAL, SMALLEST, Effect, Floats, as_dicts, finite_mean
from analysis.compare.temperature import MEANINGS, VIEWS
from analysis.show.tables import WIDTH, terminal_table
from common.files import write_atomically
from record.finished import checkpoint_state

from .compare import TESTED, Comparison, item_means, values_of
from .metrics import KEYS, METRICS, column
from .options import Settings
from .study import CONTROLS, Role, Study, reasons

_RANKS = ("auc", "auc_antonym", "auc_rejected", "gap", "log10_rank")
_SIZES = ("log_odds", "log_odds_antonym", "share_synonym", "joint", "p_word", "nll_word", "entropy")


def brief(found: Comparison, out: Path) -> str:
    """A few lines: the first metric that the study has, and whether any arm differs from the baseline in it."""
    baseline, metric = found.arms[0].label, _present(found)[0]
    rows = [[baseline, _mean(found, baseline, metric), "", ""]]
    for arm in found.arms[1:]:
        effect = found.differences[arm.label]["all"]["raw"][metric.key]
        rows.append([arm.label, _mean(found, arm.label, metric), _cell(effect, metric), _verdict(effect, metric)])
    n = counts(found.study)
    return "\n".join(
        [
            f"Synonyms ({found.study.source}): {n['items']} items at {n['contexts']:,} places in held-out text",
            f"{metric.heading}: {metric.meaning}",
            terminal_table(["arm", metric.heading, f"minus {baseline} [{CONFIDENCE:.0%}]", ""], rows),
            f"written to {out}: tables.txt (all that was measured), summary.json, pairs.csv, contexts.parquet, synonyms.png",
        ]
    )


def _verdict(effect: Effect, metric: Metric) -> str:
    """Whether the interval of a difference excludes zero, and if not, how large the difference would have had to be."""
    if effect.low is None or effect.high is None:
        return "no interval"
    if effect.low > 0 or effect.high < 0:
        return "higher" if effect.low > 0 else "lower"
    return f"no difference shown; one of {_smallest(effect, metric)} would be"


def printed(found: Comparison, out: Path) -> str:
    """All tables, for a terminal."""
    study, present = found.study, _present(found)
    means = [[arm.label, *(_mean(found, arm.label, metric) for metric in present)] for arm in found.arms]
    return "\n".join(
        [
            *described(study),
            "\nThe models",
            terminal_table(["arm", *_MODEL_COLUMNS], [_model_row(found, arm) for arm in found.arms]),
            f"\nMeans over {len(study.items)} items, all contexts, models as they are",
            terminal_table(["arm", *(metric.heading for metric in present)], means),
            *(line for arm in found.arms[1:] for line in _differences(found, arm.label)),
            "",
            *(f"{metric.heading:14} {metric.meaning}" for metric in present),
            f"\nIntervals: {CONFIDENCE:.0%}, {INTERVAL};",
            f"{CAVEATS}.",
            "p: Wilcoxon's signed-rank test over items, matched view, not corrected for the number of rows.",
            f"could show: {SMALLEST}, matched view.",
            "The rows on ranks lead: a flatter softmax hardly changes the order of single tokens, and controls are as frequent.",
            "The fitted view, and everything else, is in summary.json.",
            f"written to {out}",
        ]
    )


def described(study: Study) -> list[str]:
    """What the study consists of, in words, and what was left out."""
    n = counts(study)
    lines = [
        f"{study.source}: {n['items']} of {n['items'] + n['items_left_out']} items used; {n['contexts']} contexts "
        f"({n['contexts_single_tokens']} of single tokens),",
        f"{n['lemmas']} lemmas, {n['documents']} documents; {CONTROLS} control words for each synonym; "
        f"{n['shuffled_contexts']} contexts of other words",
    ]
    if study.left_out:
        lines.append(f"left out {len(study.left_out)} ({reasons(study.left_out)}); why, for each, is in summary.json")
        named = ", ".join(entry.name for entry in study.left_out)
        lines.append(textwrap.shorten(f"  not used: {named}", WIDTH, placeholder=" ..."))
    return lines


_MODEL_COLUMNS = ("seeds", "T fitted", "T matched", "NLL", "NLL fitted", "distance ratio", "gain of context")


def _model_row(found: Comparison, arm: Arm) -> list[str]:
    results = [found.results[member.label] for member in arm.members]
    columns = [[result.temperatures[view] for result in results] for view in ("fitted", "matched")]
    columns += [[result.nll[view] for result in results] for view in ("raw", "fitted")]
    means = [float(np.mean(values)) for values in columns] + [float(finite_mean(_distances(found, arm).ravel()))]
    return [arm.label, str(len(results)), *(f"{mean:.3f}" for mean in means), found.gains[arm.label].format(".2f")]


def _differences(found: Comparison, label: str) -> list[str]:
    """The tables of one arm: of all words and then, if there are others too, of single tokens alone."""
    present, ranks = _present(found), found.signed_ranks[label]["matched"]
    raw, matched = (found.differences[label]["all"][view] for view in ("raw", "matched"))
    rows = []
    for metric in present:
        effect = matched[metric.key]
        p = format(ranks[metric.key]["p"], ".1e") if np.isfinite(effect.mean) else ""
        cells = [_cell(raw[metric.key], metric), _cell(effect, metric), p, _smallest(effect, metric)]
        rows.append([metric.heading, *cells])
    table = terminal_table(["metric", "raw", "matched", "p", "could show"], rows)
    parts = [f"\n{label} minus {found.arms[0].label}", table]
    single = found.differences[label]["single"]["raw"]
    if not found.study.single_M.all():
        rows = [
            [metric.heading, _cell(single[metric.key], metric), str(single[metric.key].n)]
            for metric in present
            if metric.key in single and np.isfinite(single[metric.key].mean)
        ]
        parts += ["where word and synonym are single tokens", terminal_table(["metric", "raw", "n"], rows)]
    tested = _tested(found, label)
    return [
        *parts,
        f"{TESTED}, matched, item by item (Wilcoxon over contexts, Holm over {tested['items']} items): "
        f"{tested['higher']} higher, {tested['lower']} lower, {tested['not_shown']} not shown, "
        f"{tested['too_few_contexts']} of them for lack of contexts",
    ]


def _present(found: Comparison) -> list[Metric]:
    """The metrics that this study has values of."""
    by_key = {metric.key: metric for metric in METRICS}
    base = found.means[found.arms[0].label]["raw"]
    return [by_key[key] for key in _RANKS + _SIZES if np.isfinite(base[key]["mean"])]


def _mean(found: Comparison, label: str, metric: Metric) -> str:
    return format(found.means[label]["raw"][metric.key]["mean"], metric.form)


def _cell(effect: Effect, metric: Metric) -> str:
    return effect.format(f"+{metric.form}") if np.isfinite(effect.mean) else ""


def _smallest(effect: Effect, metric: Metric) -> str:
    return "" if effect.smallest is None else format(effect.smallest, metric.form)


def summary(found: Comparison, settings: Settings) -> dict[str, Any]:
    """The contents of summary.json."""
    study = found.study
    return {
        "baseline": found.arms[0].label,
        "models": [_model_entry(arm, member, found) for arm in found.arms for member in arm.members],
        "source": study.source,
        "counts": counts(study),
        "settings": asdict(settings),
        "interval": f"{CONFIDENCE:.0%}, {INTERVAL}; {CAVEATS}",
        "smallest": SMALLEST,
        "metrics": {metric.key: metric.meaning for metric in METRICS},
        "views": MEANINGS,
        "means": found.means,
        "gains": as_dicts(found.gains),
        "distance_ratio": {
            arm.label: {
                "mean": float(finite_mean(_distances(found, arm).ravel())),
                "items": int(np.isfinite(_distances(found, arm)).any(axis=0).sum()),
            }
            for arm in found.arms
        },
        "differences": as_dicts(found.differences),
        "signed_rank": found.signed_ranks,
        "items_tested": {
            arm.label: {"metric": TESTED, "view": "matched", **_tested(found, arm.label)} for arm in found.arms[1:]
        },
        "left_out": [asdict(entry) for entry in study.left_out],
    }


def _model_entry(arm: Arm, member: Member, found: Comparison) -> dict[str, Any]:
    result = found.results[member.label]
    return {
        "label": member.label,
        "arm": arm.label,
        "checkpoint": str(member.checkpoint),
        "step": checkpoint_state(member.checkpoint).get("step"),
        "seed": member.seed,
        "untrained": member.untrained,
        "temperatures": result.temperatures,
        "nll": result.nll,
        "read": "trees" if result.takes_trees else "one by one",
    }


def _distances(found: Comparison, arm: Arm) -> Floats:
    """(seeds, P): the distance of synonyms' embeddings over that of controls."""
    return np.stack([found.results[member.label].distance_P for member in arm.members])


def _tested(found: Comparison, label: str) -> dict[str, int]:
    """How many items differ at a familywise error of 5%, and which way; how many could not have been shown to."""
    test = found.item_tests[label]
    tested = np.isfinite(test.p_P)
    shown = tested & (np.nan_to_num(test.holm_P, nan=1.0) <= 1 - CONFIDENCE)
    could = test.lowest_P * np.count_nonzero(tested & ~shown) <= 1 - CONFIDENCE
    counted = {
        "items": tested,
        "higher": shown & (test.mean_P > 0),
        "lower": shown & (test.mean_P < 0),
        "not_shown": tested & ~shown,
        "too_few_contexts": tested & ~shown & ~could,
    }
    return {key: int(chosen.sum()) for key, chosen in counted.items()}


def counts(study: Study) -> dict[str, int]:
    """The size of the study."""
    return {
        "items": len(study.items),
        "items_left_out": len(study.left_out),
        "contexts": int(study.own_M.sum()),
        "contexts_single_tokens": int((study.own_M & study.single_M).sum()),
        "shuffled_contexts": int(study.shuffled_M.sum()),
        "places": len(np.unique(study.place_M[study.own_M])),
        "documents": len(np.unique(study.document_M[study.own_M])),
        "lemmas": len(np.unique(study.lemma_M[study.own_M])),
        "controls_per_synonym": CONTROLS,
    }


def item_table(found: Comparison) -> pd.DataFrame:
    """A row for each item and arm: the words, their controls, contexts, metrics in every view, and the item's own test."""
    study = found.study
    shared = pd.DataFrame(
        {
            "item": [item.name for item in study.items],
            "domain": [item.domain for item in study.items],
            "pos": [item.pos for item in study.items],
            "contexts": np.bincount(study.item_M[study.own_M], minlength=len(study.items)),
            "controls": _words_of(study, Role.CONTROL),
            "antonyms": _words_of(study, Role.ANTONYM),
        }
    )
    tables = []
    for arm in found.arms:
        table = shared.assign(arm=arm.label)
        for view in VIEWS:
            for key in KEYS:
                table[column(key, view)] = item_means(study, values_of(arm, found.results, key, view))
        table["distance_ratio"] = finite_mean(_distances(found, arm))
        if arm.label in found.item_tests:
            test = found.item_tests[arm.label]
            table[f"difference_{TESTED}_matched"], table["p"], table["p_holm"] = test.mean_P, test.p_P, test.holm_P
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _words_of(study: Study, role: Role) -> list[str]:
    """The candidates of a role of each item, each once."""
    found: list[dict[str, None]] = [{} for _ in study.items]
    for unit in study.units:
        found[unit.item] |= {c.surface.strip().lower(): None for c in unit.candidates if c.role == role}
    return [" ".join(words) for words in found]


def write_contexts(found: Comparison, path: Path) -> None:
    """contexts.parquet: a row for each model and context, metrics in float32; one row group a model."""
    import pyarrow as pa
    from pyarrow import parquet

    study = found.study
    surfaces = [unit.candidates[0].surface for unit in study.units]
    shared = {
        "item": pa.array([study.items[i].name for i in study.item_M]).dictionary_encode(),
        "word": pa.array([surfaces[u] for u in study.unit_M]).dictionary_encode(),
        "document": pa.array(study.document_M.astype(np.int32)),
        "passage": pa.array(study.passage_C[study.place_M].astype(np.int32)),
        "position": pa.array(study.position_C[study.place_M].astype(np.int32)),
        "shuffled": pa.array(study.shuffled_M),
        "single_tokens": pa.array(study.single_M),
    }

    def table_of(arm: Arm, member: Member) -> Any:
        columns: dict[str, Any] = {
            "arm": pa.array([arm.label] * len(study.place_M)).dictionary_encode(),
            "seed": pa.array([member.seed] * len(study.place_M), pa.int64()),
            **shared,
        }
        for key, value_XM in found.results[member.label].metrics.items():
            columns |= {column(key, view): pa.array(value_M) for view, value_M in zip(VIEWS, value_XM, strict=True)}
        return pa.table(columns)

    def write(file: Any) -> None:
        tables = (table_of(arm, member) for arm in found.arms for member in arm.members)  # one in memory at a time
        first = next(tables)
        with parquet.ParquetWriter(file, first.schema) as writer:
            for table in itertools.chain([first], tables):
                writer.write_table(table)

    write_atomically(path, write)
