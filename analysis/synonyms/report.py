"""What a comparison says: the printed tables, summary.json, pairs.csv and contexts.parquet."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.compare.arms import Arm, Member
from analysis.compare.metric import MEANINGS, VIEWS, Metric
from analysis.compare.statistics import CONFIDENCE, INTERVAL, NO_INTERVAL, ONE_SEED, SMALLEST, Effect
from analysis.show.tables import WIDTH, terminal_table
from common.files import write_atomically
from record.finished import checkpoint_state

from .compare import TESTED, Comparison, finite_mean, item_means, values_of
from .measure_models import Asked, Settings
from .measures import KEYS, METRICS
from .score import Floats
from .study import CONTROLS, Role, Study, reasons

_BY_KEY = {metric.key: metric for metric in METRICS}
_LEADING = (
    "auc",
    "auc_antonym",
    "auc_rejected",
    "gap",
    "log10_rank",
    "log_odds",
    "log_odds_antonym",
    "share_synonym",
    "joint",
)
_BESIDE = ("p_word", "nll_word", "entropy")


def brief(found: Comparison, out: Path) -> str:
    """What leads, in a few lines: the first metric that the study has, and whether any arm differs from the baseline in it."""
    baseline, metric = found.arms[0].label, _present(found)[0]
    rows = []
    for arm in found.arms:
        cells = [arm.label, format(found.means[arm.label]["raw"][metric.key], metric.form), "", ""]
        if arm.label in found.differences:
            effect = found.differences[arm.label]["all"]["raw"][metric.key]
            cells[2:] = [_cell(effect, metric), _verdict(effect, metric)]
        rows.append(cells)
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
    """Whether the interval of a difference leaves its sign open, and then how large it would have had to be."""
    if effect.low is None or effect.high is None:
        return "no interval"
    if effect.low > 0 or effect.high < 0:
        return "higher" if effect.low > 0 else "lower"
    return f"no difference shown; one of {_smallest(effect, metric)} would be"


def printed(found: Comparison, asked: Mapping[str, Asked], out: Path) -> str:
    """All tables, for a terminal."""
    study, arms = found.study, found.arms
    parts = [
        *described(study),
        "\nThe models",
        terminal_table(["arm", *_MODEL_COLUMNS], [_model_row(arm, asked, found.gains[arm.label]) for arm in arms]),
        f"\nMeans over {len(study.items)} items, all contexts, models as they are",
        terminal_table(
            ["arm", *(m.heading for m in _present(found))],
            [
                [arm.label, *(format(found.means[arm.label]["raw"][m.key], m.form) for m in _present(found))]
                for arm in arms
            ],
        ),
    ]
    for arm in arms[1:]:
        parts += _differences(found, arm)
    parts += ["", *(f"{m.heading:14} {m.meaning}" for m in _present(found))]
    parts += [
        f"\nIntervals: {CONFIDENCE:.0%}, {INTERVAL};",
        f"{NO_INTERVAL}; {ONE_SEED}.",
        "p: Wilcoxon's signed-rank test over items, matched view, not corrected for the number of rows.",
        f"could show: {SMALLEST}, matched view.",
        "The rows on ranks lead: a flatter softmax hardly changes the order of single tokens, and controls are as frequent.",
        "The fitted view, and everything else, is in summary.json.",
        f"written to {out}",
    ]
    return "\n".join(parts)


def summary(found: Comparison, asked: Mapping[str, Asked], settings: Settings) -> dict[str, Any]:
    """Everything that was counted and estimated, as JSON."""
    study = found.study
    return {
        "baseline": found.arms[0].label,
        "models": [_model_entry(arm, m, asked[m.label]) for arm in found.arms for m in arm.members],
        "source": study.source,
        "counts": counts(study),
        "settings": asdict(settings),
        "interval": f"{CONFIDENCE:.0%}, {INTERVAL}; {NO_INTERVAL}; {ONE_SEED}",
        "smallest": SMALLEST,
        "metrics": {metric.key: metric.meaning for metric in METRICS},
        "views": MEANINGS,
        "means": _with_items(found.means, found.items, "mean"),
        "gains": {label: asdict(effect) for label, effect in found.gains.items()},
        "distance_ratio": {
            arm.label: {
                "mean": _distance(arm, asked),
                "items": int(np.isfinite(_distances(arm, asked)).any(axis=0).sum()),
            }
            for arm in found.arms
        },
        "differences": {
            arm: {
                scope: {view: {key: asdict(e) for key, e in row.items()} for view, row in views.items()}
                for scope, views in scopes.items()
            }
            for arm, scopes in found.differences.items()
        },
        "signed_rank": _with_items(found.signed_ranks, found.paired_items, "p"),
        "items_tested": {
            arm.label: {"metric": TESTED, "view": "matched", **_tested(found, arm)} for arm in found.arms[1:]
        },
        "left_out": [asdict(entry) for entry in study.left_out],
    }


def item_table(found: Comparison, asked: Mapping[str, Asked]) -> pd.DataFrame:
    """A row for each item and arm: the words, their controls, contexts, metrics in every view, and the item's own test."""
    study = found.study
    asked_M = ~study.shuffled_M
    shared = pd.DataFrame(
        {
            "item": [item.name for item in study.items],
            "domain": [item.domain for item in study.items],
            "pos": [item.pos for item in study.items],
            "contexts": np.bincount(study.item_M[asked_M], minlength=len(study.items)),
            "controls": _words_of(study, Role.CONTROL),
            "antonyms": _words_of(study, Role.ANTONYM),
        }
    )
    tables = []
    for arm in found.arms:
        table = shared.assign(arm=arm.label)
        for x, view in enumerate(VIEWS):
            for key in KEYS:
                value_SM = values_of(arm, found.measured, key, x)
                table[key if view == "raw" else f"{key}_{view}"] = item_means(study, value_SM, asked_M)
        table["distance_ratio"] = finite_mean(_distances(arm, asked))
        if arm.label in found.item_tests:
            test = found.item_tests[arm.label]
            table[f"difference_{TESTED}_matched"], table["p"], table["p_holm"] = test.mean_P, test.p_P, test.holm_P
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


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

    def write(file: Any) -> None:
        """One model after the other, so that only one is in memory as a table."""
        writer = None
        for arm in found.arms:
            for member in arm.members:
                columns: dict[str, Any] = {
                    "arm": pa.array([arm.label] * len(study.place_M)).dictionary_encode(),
                    "seed": pa.array([member.seed] * len(study.place_M), pa.int64()),
                    **shared,
                }
                for key, value_XM in found.measured[member.label].items():
                    for view, value_M in zip(VIEWS, value_XM, strict=True):
                        columns[key if view == "raw" else f"{key}_{view}"] = pa.array(value_M)
                table = pa.table(columns)
                writer = writer or parquet.ParquetWriter(file, table.schema)
                writer.write_table(table)
        if writer:
            writer.close()

    write_atomically(path, write)


# ---------------------------------------------------------------------------------------------------------- their parts

_MODEL_COLUMNS = ("seeds", "T fitted", "T matched", "NLL", "NLL fitted", "distance ratio", "gain of context")


def _model_row(arm: Arm, asked: Mapping[str, Asked], gain: Effect) -> list[str]:
    several = [asked[member.label] for member in arm.members]

    def mean(values: Sequence[float]) -> str:
        return format(float(np.mean(values)), ".3f")

    return [
        arm.label,
        str(len(several)),
        mean([a.temperatures["fitted"] for a in several]),
        mean([a.temperatures["matched"] for a in several]),
        mean([a.nll["raw"] for a in several]),
        mean([a.nll["fitted"] for a in several]),
        format(_distance(arm, asked), ".3f"),
        gain.format(".2f"),
    ]


def _distance(arm: Arm, asked: Mapping[str, Asked]) -> float:
    """The mean over items and seeds of the distance of synonyms' embeddings over that of controls."""
    return float(finite_mean(_distances(arm, asked).ravel()))


def _distances(arm: Arm, asked: Mapping[str, Asked]) -> Floats:
    """(seeds, P)."""
    return np.stack([asked[member.label].distance_P for member in arm.members])


def _with_items(
    values: dict[str, dict[str, dict[str, float]]], items: dict[str, dict[str, dict[str, int]]], name: str
) -> dict[str, Any]:
    """[arm][view][metric]: the value, called ``name``, and over how many items it is."""
    return {
        arm: {
            view: {key: {name: value, "items": items[arm][view][key]} for key, value in row.items()}
            for view, row in views.items()
        }
        for arm, views in values.items()
    }


def _model_entry(arm: Arm, member: Member, found: Asked) -> dict[str, Any]:
    return {
        "label": member.label,
        "arm": arm.label,
        "checkpoint": str(member.checkpoint),
        "step": checkpoint_state(member.checkpoint).get("step"),
        "seed": member.seed,
        "untrained": member.untrained,
        "temperatures": found.temperatures,
        "nll": found.nll,
        "read": "trees" if found.takes_trees else "one by one",
    }


def _present(found: Comparison) -> list[Metric]:
    """The metrics that this study has values of."""
    base = found.means[found.arms[0].label]["raw"]
    return [_BY_KEY[key] for key in (*_LEADING, *_BESIDE) if np.isfinite(base[key])]


def _differences(found: Comparison, arm: Arm) -> list[str]:
    """The rows of one arm, of all words and then, where there are others too, of single tokens alone."""
    views, ranks = found.differences[arm.label]["all"], found.signed_ranks[arm.label]["matched"]
    rows = []
    for metric in _present(found):
        raw, matched = views["raw"][metric.key], views["matched"][metric.key]
        p = format(ranks[metric.key], ".1e") if np.isfinite(matched.mean) else ""
        rows.append([metric.heading, _cell(raw, metric), _cell(matched, metric), p, _smallest(matched, metric)])
    parts = [
        f"\n{arm.label} minus {found.arms[0].label}",
        terminal_table(["metric", "raw", "matched", "p", "could show"], rows),
    ]
    single = found.differences[arm.label]["single"]["raw"]
    if not found.study.single_M.all():
        rows = [
            [metric.heading, _cell(single[metric.key], metric), str(single[metric.key].n)]
            for metric in _present(found)
            if metric.key in single and np.isfinite(single[metric.key].mean)
        ]
        parts += ["where word and synonym are single tokens", terminal_table(["metric", "raw", "n"], rows)]
    tested = _tested(found, arm)
    return [
        *parts,
        f"{TESTED}, matched, item by item (Wilcoxon over contexts, Holm over {tested['items']} items): "
        f"{tested['higher']} higher, {tested['lower']} lower, {tested['not_shown']} not shown, "
        f"{tested['too_few_contexts']} of them for lack of contexts",
    ]


def _cell(effect: Effect, metric: Metric) -> str:
    return effect.format(f"+{metric.form}") if np.isfinite(effect.mean) else ""


def _smallest(effect: Effect, metric: Metric) -> str:
    return "" if effect.smallest is None else format(effect.smallest, metric.form)


def _tested(found: Comparison, arm: Arm) -> dict[str, int]:
    """How many items differ at a familywise error of 5%, and which way; how many could not have been shown to."""
    test = found.item_tests[arm.label]
    tested = np.isfinite(test.p_P)
    shown = tested & (np.nan_to_num(test.holm_P, nan=1.0) <= 1 - CONFIDENCE)
    could = test.lowest_P * np.count_nonzero(tested & ~shown) <= 1 - CONFIDENCE
    return {
        "items": int(tested.sum()),
        "higher": int((shown & (test.mean_P > 0)).sum()),
        "lower": int((shown & (test.mean_P < 0)).sum()),
        "not_shown": int((tested & ~shown).sum()),
        "too_few_contexts": int((tested & ~shown & ~could).sum()),
    }


def _words_of(study: Study, role: Role) -> list[str]:
    """The candidates of a role of each item, as they are written first."""
    found: list[dict[str, None]] = [{} for _ in study.items]
    for unit in study.units:
        found[unit.item] |= {c.surface.strip().lower(): None for c in unit.candidates if c.role == role}
    return [" ".join(words) for words in found]


def counts(study: Study) -> dict[str, int]:
    """How much is asked, and of how many."""
    asked_M = ~study.shuffled_M
    return {
        "items": len(study.items),
        "items_left_out": len(study.left_out),
        "contexts": int(asked_M.sum()),
        "contexts_single_tokens": int((asked_M & study.single_M).sum()),
        "shuffled_contexts": int(study.shuffled_M.sum()),
        "places": len(np.unique(study.place_M[asked_M])),
        "documents": len(np.unique(study.document_M[asked_M])),
        "lemmas": len(np.unique(study.lemma_M[asked_M])),
        "controls_per_synonym": CONTROLS,
    }


def described(study: Study) -> list[str]:
    """The same in words, a line each, with what was left out."""
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
