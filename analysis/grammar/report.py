"""The printed tables and the data files of analysis.grammar.

Shapes: S sets, X views, R single contexts of single sets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.compare.arms import Arm
from analysis.compare.metric import Metric
from analysis.compare.statistics import CAVEATS, CONFIDENCE, INTERVAL, SMALLEST, Effect
from analysis.compare.temperature import MEANINGS_WITH_TRUTH, VIEWS
from analysis.show.tables import terminal_table

from .compare import SCOPES, SYNONYMS, Result, set_means
from .truth import KEPT_MASS, KINDS, SET_METRICS, TEXT_METRICS, Scores

_LEADING = ("split_kl", "log_fracture", "joint_kl")
"""Metrics of sets whose differences are printed for each kind."""


def first_scores(result: Result) -> Scores:
    """The scores of one model: their values of the truth are the same for all."""
    return result.scores[result.arms[0].members[0].label]


def counts(result: Result) -> dict[str, Any]:
    """Documents, positions, and for each kind its lemmas, sets, expected occurrences and single contexts kept."""
    scores, sets = first_scores(result), result.study.grammar.sets
    kept_S = np.bincount(scores.kept.set_R, minlength=len(sets))
    mass_S = scores.mass_DS.sum(axis=0)
    kinds = {}
    for kind in KINDS:
        chosen_S = np.array([one.kind == kind for one in sets])
        kinds[kind] = {
            "lemmas": len({one.lemma for one in sets if one.kind == kind}),
            "sets": int(chosen_S.sum()),
            "expected_occurrences": float(mass_S[chosen_S].sum()),
            "contexts_kept": int(kept_S[chosen_S].sum()),
        }
    return {
        "documents": len(scores.document_D),
        "positions": int(scores.position_D.sum()),
        "calibration_documents": len(result.study.calibration.document_D),
        "calibration_positions": int(result.study.calibration.length_D.sum()),
        "kept_from_mass": KEPT_MASS,
        "kinds": kinds,
    }


def set_table(result: Result) -> pd.DataFrame:
    """A row for each set, arm and view: the set, its expected occurrences, and the metrics over all the arm's members."""
    sets = result.study.grammar.sets
    shared = pd.DataFrame(
        {
            "set": [one.name for one in sets],
            "lemma": [one.lemma for one in sets],
            "kind": [one.kind for one in sets],
            "words": ["/".join(result.study.grammar.words[token].strip() for token in one.tokens) for one in sets],
            "expected_occurrences": first_scores(result).mass_DS.sum(axis=0),
        }
    )
    tables = []
    for arm in result.arms:
        scores = [result.scores[member.label] for member in arm.members]
        for x, view in enumerate(VIEWS):
            values = {metric.key: set_means(scores, metric.key, x) for metric in SET_METRICS}
            tables.append(shared.assign(arm=arm.label, seeds=len(arm.members), view=view, **values))
    return pd.concat(tables, ignore_index=True)


def context_table(result: Result) -> pd.DataFrame:
    """A row for each context of each set in which the set has a true probability of KEPT_MASS or more.

    Columns: set, kind, document (its number in the validation split), position, true_mass and true_share (of the set's
    first word), then for each model and view "<model>:<view>:mass", ":share" and ":split_kl". Numbers are float32.
    """
    sets, kept = result.study.grammar.sets, first_scores(result).kept
    columns: dict[str, Any] = {
        "set": pd.Categorical.from_codes(kept.set_R, [one.name for one in sets]),
        "kind": pd.Categorical([sets[index].kind for index in kept.set_R], categories=KINDS),
        "document": kept.document_R,
        "position": kept.position_R,
        "true_mass": kept.mass_R.astype(np.float32),
        "true_share": kept.share_R.astype(np.float32),
    }
    for label, scores in result.scores.items():
        one = scores.kept
        values = {"mass": one.model_mass_XR, "share": one.model_share_XR, "split_kl": one.split_kl_XR}
        for x, view in enumerate(VIEWS):
            columns |= {f"{label}:{view}:{key}": value_XR[x].astype(np.float32) for key, value_XR in values.items()}
    return pd.DataFrame(columns).sort_values(["document", "position", "set"], ignore_index=True)


def report(result: Result) -> str:
    """The printed tables."""
    counted, first = counts(result), first_scores(result)
    nll, entropy = (first.truth[key].sum() / first.position_D.sum() for key in ("nll", "entropy"))
    kinds = [
        [kind, str(n["lemmas"]), str(n["sets"]), f"{n['expected_occurrences']:.1f}", f"{n['contexts_kept']:,}"]
        for kind, n in counted["kinds"].items()
    ]
    parts = [
        f"grammar of seed {result.study.grammar.seed}: {counted['documents']} documents, {counted['positions']:,} contexts; "
        f"temperatures from {counted['calibration_documents']} others ({counted['calibration_positions']:,} contexts)",
        "",
        terminal_table(["kind", "lemmas", "sets", "expected occurrences", f"contexts with m >= {KEPT_MASS}"], kinds),
        f"\nMean over all contexts, in nats per token; the truth has an entropy of {entropy:.4f} and on these words an NLL "
        f"of {nll:.4f}",
        _arms(result),
        *_weights(result),
    ]
    for metric in SET_METRICS:
        parts += [f"\n{metric.heading}: {metric.meaning}", _by_kind(result, metric)]
    n = f"{counted['documents']} documents, {CONFIDENCE:.0%} intervals over lemmas, documents and seeds"
    for arm in result.arms[1:]:
        for view, meaning in MEANINGS_WITH_TRUTH.items():
            title = f"\n{arm.label} minus {result.arms[0].label}, {view}: {meaning} (seeds: {len(arm.members)}; {n})"
            parts += [title, _differences(result, arm, view)]
    return "\n".join(
        [
            *parts,
            "",
            *(f"{metric.heading:14} {metric.meaning}" for metric in (*TEXT_METRICS, *SET_METRICS)),
            f"smallest       {SMALLEST}",
            "p              Wilcoxon's signed-rank test over the lemmas' mean differences, in which all lemmas weigh the same",
            f"[low, high]    {INTERVAL};",
            f"               {CAVEATS}",
        ]
    )


def _arms(result: Result) -> str:
    rows = []
    for arm in result.arms:
        for view in VIEWS:
            text = result.tables[arm.label].text[view]
            temperature = np.mean([result.temperatures[member.label][view] for member in arm.members])
            values = [format(text[metric.key].mean, metric.form) for metric in TEXT_METRICS]
            rows.append([f"{arm.label} {view}", str(len(arm.members)), f"{temperature:.3f}", *values])
    return terminal_table(["arm, view", "seeds", "temp.", *(metric.heading for metric in TEXT_METRICS)], rows)


def _weights(result: Result) -> list[str]:
    """The weights c of the arms that log them, and why the others have none."""
    rows, without = [], []
    for arm in result.arms:
        found = [result.weights[member.label] for member in arm.members if member.label in result.weights]
        if found:
            means = [f"{np.mean([one[key] for one in found]):.4f}" for key in ("last_tenth", "lowest_decile")]
            rows.append([arm.label, str(len(found)), *means])
        else:
            without.append(arm.label)
    if not rows:
        return []
    why = "without c, which is logged where no logit is above 0 (metric heads) or the objective uses it"
    return [
        "\nMean weight c by which TFSD scales the gradient of CE, or would where the objective is another, in training",
        terminal_table(["arm", "seeds", "last tenth of training", "lowest decile over training"], rows),
        *([f"{', '.join(without)}: {why}"] if without else []),
    ]


def _by_kind(result: Result, metric: Metric) -> str:
    rows = []
    for arm in result.arms:
        for view in VIEWS:
            effects = [result.tables[arm.label].sets[view][scope][metric.key] for scope in SCOPES]
            means = [format(effect.mean, metric.form) if effect.n else "-" for effect in effects]
            rows.append([f"{arm.label} {view}", *means])
    return terminal_table(["arm, view", *SCOPES], rows)


def _differences(result: Result, arm: Arm, view: str) -> str:
    table = result.differences[arm.label]
    rows = [
        _row("all contexts", metric, table.text[view][metric.key], None)
        for metric in TEXT_METRICS
        if metric.key != "nll"  # its difference is that of the excess
    ]
    for scope in SCOPES:
        for metric in SET_METRICS:
            if scope == SYNONYMS or metric.key in _LEADING:
                p = table.wilcoxon[view][scope][metric.key]
                rows.append(_row(scope, metric, table.sets[view][scope][metric.key], p))
    return terminal_table(["where", "metric", "difference", "smallest", "p", "lemmas"], rows)


def _row(where: str, metric: Metric, effect: Effect, p: float | None) -> list[str]:
    smallest = "-" if effect.smallest is None else format(effect.smallest, metric.form)
    lemmas = str(effect.clusters.get("lemma", "-"))
    difference = effect.format(f"+{metric.form}") if effect.n else "-"
    return [where, metric.heading, difference, smallest, "-" if p is None else f"{p:.2g}", lemmas]
