"""Explanations and counterfactuals as a replay makes them, from numbers that a test makes up."""

from __future__ import annotations

import re
from dataclasses import replace
from pydoc_data import topics

import numpy as np

from analysis.replay.explanation import (
    BatchSequence,
    Counterfactual,
    Explanation,
    Group,
    Layer,
    MetricCheck,
    MovedEmbedding,
    Token,
    TokenTable,
)

STEP = 312
_PIECES = re.findall(r" ?\w+|\n+| +|[^\w\s]", " ".join(text for _, text in sorted(topics.topics.items())))


def explained(
    sequences: int = 16,
    positions: int = 128,
    *,
    layers: int = 4,
    bad: int = 4,
    weights: bool = True,
    recorded: int = 4,
    seed: int = 0,
) -> tuple[Explanation, TokenTable]:
    """A step on English text in which ``bad`` sequences are of random tokens; ``recorded`` have their tokens listed."""
    rng = np.random.default_rng(seed)
    shape = (sequences, positions)
    vocabulary = sorted(set(_PIECES))
    number_of = {piece: i for i, piece in enumerate(vocabulary)}
    start = int(rng.integers(len(_PIECES)))
    pieces = [_PIECES[(start + i) % len(_PIECES)] for i in range(sequences * positions)]
    ids = np.array([number_of[piece] for piece in pieces]).reshape(shape)
    nll = np.minimum(rng.gamma(1.6, 2.6, shape), 14.0)
    if bad:
        ids[:bad] = rng.integers(len(vocabulary), size=(bad, positions))
        nll[:bad] = rng.normal(12.5, 1.8, (bad, positions))
    table = TokenTable(ids, nll, nll * 0.9, rng.beta(9, 0.6, shape) if weights else None)
    names = ["embedding", *(f"layer_{i:02d}" for i in range(layers)), "norm", "head"]
    norms = np.where(np.arange(sequences) < bad, 4.1, 0.5) * rng.lognormal(0, 0.25, sequences) / np.sqrt(sequences)
    rows = []
    for place, row in enumerate(np.argsort(-norms)):
        parts = norms[row] * np.sqrt(rng.dirichlet(np.ones(len(names))))
        rows.append(_sequence(int(row), table, vocabulary, float(norms[row]), place < recorded, rng))
        rows[-1] = replace(rows[-1], group_grad_norms=dict(zip(names, map(float, parts), strict=True)))
    steps = list(range(STEP - 60, STEP + 21))
    history: dict[str, list[float | None]] = {
        "step": [float(step) for step in steps],
        "loss/nll": [4.93 + 0.06 * float(rng.normal()) for _ in steps],
        "grad_norm/total": [0.62 * float(rng.lognormal(0, 0.1)) * (9 if step == STEP else 1) for step in steps],
    }
    at = steps.index(STEP)
    before = float(nll.mean())
    history["loss/nll"][at] = before
    explanation = Explanation(
        run="demo_tfsd", run_directory="runs/demo_tfsd", step=STEP, checkpoint=300, batch=STEP, device="cpu",
        tolerance=0.0, tolerance_reason="", disagreements=[], steps_compared=12, stress=[],
        spike=None, usual_window=(STEP - 64, STEP - 1),
        metrics={
            "loss/nll": MetricCheck(before, before, True, 4.931, (before - 4.931) / 0.06),
            "grad_norm/total": MetricCheck(
                history["grad_norm/total"][at], history["grad_norm/total"][at] or 0.0, True, 0.618, 77.2
            ),
            "lr": MetricCheck(3e-4, 3e-4, True, 3e-4, None),
            "hidden_norm/pre_final/max": MetricCheck(None, 84.2, True, None, None),
        },
        clipped_by=0.18, nll_before=before, nll_after=before - 0.21, sequences=rows,
        groups=[
            Group(name, float(g), 0.21, 1.1e-4 * float(g), 1.0e-4, 40.0)
            for name, g in zip(names, rng.lognormal(0, 0.8, len(names)), strict=True)
        ],
        embeddings=[
            MovedEmbedding(int(i), vocabulary[i], 0.031 / (k + 1), 0.91, 0.93, 4 + k, k)
            for k, i in enumerate(rng.integers(len(vocabulary), size=8))
        ],
        layers=[
            Layer(name, 8.0 + i, 14.0 + 2 * i, 8.1 + 1.02 * i, 14.3 + 2.2 * i)
            for i, name in enumerate([*names[1:-2], "pre_final", "final"])
        ],
        history=history,
    )  # fmt: skip
    return explanation, table


def _sequence(
    row: int, table: TokenTable, vocabulary: list[str], grad_norm: float, recorded: bool, rng: np.random.Generator
) -> BatchSequence:
    ids, nll = table.token_id_BT[row], table.nll_BT[row]
    weight = None if table.weight_BT is None else table.weight_BT[row]
    tokens = [
        Token(
            t, int(ids[t]), vocabulary[ids[t]], float(nll[t]), float(table.objective_BT[row, t]),
            None if weight is None else float(weight[t]), [(" the", 0.31), ("\n", 0.08), (" of", 0.05)],
        )
        for t in range(len(ids))
    ]  # fmt: skip
    return BatchSequence(
        row, 1000 + row, len(ids), float(nll.mean()), float(nll.max()), float(table.objective_BT[row].mean()),
        None if weight is None else float(weight.mean()), grad_norm, float(rng.uniform(0.5, 0.9)), {},
        "".join(token.text for token in tokens), tokens if recorded else [],
    )  # fmt: skip


def changed(change: str, meaning: str, *, factor: float, steps: int = 40, seed: int = 3) -> Counterfactual:
    """A spike of NLL and gradient at step ``STEP`` that the change makes ``factor`` times as high."""
    rng = np.random.default_rng(seed)
    numbers = list(range(STEP - 12, STEP - 12 + steps))
    bump = np.array([np.exp(-(step - STEP) / 6) if step >= STEP else 0.0 for step in numbers])
    noise, gradient = 4.9 + 0.05 * rng.normal(size=steps), rng.lognormal(-0.5, 0.1, steps)

    def curves(height: float) -> dict[str, list[float]]:
        values = {"loss/nll": noise + height * bump, "grad_norm/total": gradient * (1 + 9 * height * bump)}
        return {name: [float(v) for v in series] for name, series in values.items()}

    found: dict[str, list[float | None]] = {name: [*values] for name, values in curves(2.2 * factor).items()}
    if change == "skip":
        for values in found.values():
            values[numbers.index(STEP)] = None
    return Counterfactual("demo_tfsd", change, meaning, 300, STEP, numbers[-1], numbers, curves(2.2), found)
