"""A study of runs on the synonym grammar: the grammar, the contexts, and a run's model as a predictor.

Shapes: D documents, B rows of a batch, T positions, V vocabulary.

A predictor is a function from rows of tokens to log-distributions, so that models and predictors that a test derives from the
grammar go through the same code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.compare.arms import Arm, Diverged, Member, check_positions, load_member
from analysis.compare.statistics import Bools, Floats, Ids
from common.errors import InputError
from configs.load import load_recorded
from data.corpora import DataConfig
from data.grammar import Grammar
from data.store import open_store
from data.tokens.spans import TokenIds

Predictor = Callable[[Ids], Floats]
"""x_BT -> ln q_BTV, normalised: the next token after each prefix of each row."""
CALIBRATION_DOCUMENTS = 40
"""Documents on which temperatures are fitted: 3,000 contexts, each with its whole true distribution."""
_NUMBERS_AT_ONCE = 1 << 21  # float64 of one distribution over a batch: 16 MiB


@dataclass(frozen=True)
class Contexts:
    """Documents, each from its first token and after an end of text; all positions up to ``length_D`` count.

    Rows are padded by repeating the document, which is text of the grammar too.
    """

    x_DT: Ids
    y_DT: Ids
    """The token after each prefix."""
    length_D: Ids
    document_D: Ids
    """The document's number in its split."""

    def first(self, documents: int) -> Contexts:
        """The first of the documents."""
        return Contexts(*(column_D[:documents] for column_D in (self.x_DT, self.y_DT, self.length_D, self.document_D)))

    def batches(self, vocabulary: int) -> Iterator[tuple[Ids, Ids, Bools]]:
        """Row indices, the rows' tokens up to the longest row, and which positions count; the longest rows come first."""
        order = np.argsort(-self.length_D, kind="stable")
        start = 0
        while start < len(order):
            longest = int(self.length_D[order[start]])
            row_B = order[start : start + max(1, _NUMBERS_AT_ONCE // (vocabulary * longest))]
            yield row_B, self.x_DT[row_B, :longest], np.arange(longest) < self.length_D[row_B, None]
            start += len(row_B)


def contexts_of(ids: TokenIds, starts: Ids, chosen: Ids, length: int, end_of_text: int) -> Contexts:
    """The documents ``chosen`` of a split with tokens ``ids`` and document starts ``starts``, cut to ``length`` positions."""
    ends = np.append(starts[1:], len(ids))
    documents = [np.asarray(ids[starts[d] : ends[d]], dtype=np.int64) for d in chosen]
    length_D = np.array([min(len(document), length) for document in documents], dtype=np.int64)
    longest = int(length_D.max())
    y_DT = np.stack([np.resize(document, longest) for document in documents])
    x_DT = np.concatenate([np.full((len(y_DT), 1), end_of_text, dtype=np.int64), y_DT[:, :-1]], axis=1)
    return Contexts(x_DT, y_DT, length_D, np.asarray(chosen, dtype=np.int64))


@dataclass(frozen=True)
class Study:
    """The grammar, and the documents on which every model is evaluated."""

    grammar: Grammar
    data: DataConfig
    evaluation: Contexts
    calibration: Contexts
    """Other documents, on which temperatures are fitted."""


def build_study(arms: Sequence[Arm], *, documents: int, seed: int) -> Study:
    """Open the runs' data and draw documents. Raises :class:`InputError` unless all runs are of one store of the grammar."""
    runs: dict[str, Path] = {}
    for member in (member for arm in arms for member in arm.members):
        if member.run is None:
            raise InputError(f"{member.checkpoint} belongs to no run, whose config.yaml names the grammar; give a run")
        runs[member.label] = member.run
    data = _same_data({label: load_recorded(run).data for label, run in runs.items()})
    store = open_store(data)
    _check_stores(runs, store.path.name)
    split = store.validation
    order = np.random.default_rng(seed).permutation(len(split.document_starts))
    aside = min(CALIBRATION_DOCUMENTS, len(order) // 4)
    if aside == 0:
        raise InputError(
            f"{store.path}: the validation split has only {len(order)} documents, too few to measure and to fit "
            "temperatures on others; raise data.documents or data.validation_fraction"
        )
    evaluation, calibration = (
        contexts_of(split.ids, split.document_starts, np.sort(chosen), data.sequence_length, store.eos_id)
        for chosen in (order[aside:][:documents], order[:aside])
    )
    return Study(Grammar(data.options["seed"]), data, evaluation, calibration)


def _same_data(found: Mapping[str, DataConfig]) -> DataConfig:
    """The data of all runs. Raises :class:`InputError` for each run on another corpus."""
    problems = [
        f"{label}: data.kind is {data.kind}; only of the grammar is the truth known" for label, data in found.items()
        if data.kind != "grammar"
    ]  # fmt: skip
    if problems:
        raise InputError(*problems)
    (first, data), *others = found.items()
    problems = [
        f"{label}: data.{key} is {yours} and that of {first} is {mine}; compare runs on one corpus"
        for label, other in others
        for key in ("seed", "documents", "validation_fraction", "sequence_length")
        if (mine := data.model_dump()[key]) != (yours := other.model_dump()[key])
    ]
    if problems:
        raise InputError(*problems)
    return data


def _check_stores(runs: Mapping[str, Path], store: str) -> None:
    """Raise :class:`InputError` for each run that was trained on another store than its configuration gives now."""
    problems = []
    for label, run in runs.items():
        path = run / "environment.json"
        try:
            trained_on = json.loads(path.read_text(encoding="utf-8"))["data"]["store"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} does not say which store the run read; restore the file or start it again"
            ) from error
        if trained_on != store:
            problems.append(
                f"{label} was trained on the store {trained_on}, and the grammar's rules now give {store}: its truth "
                "is no longer known; start the run again"
            )
    if problems:
        raise InputError(*problems)


def predictor(member: Member, study: Study) -> Predictor:
    """The model as a function of tokens, which raises :class:`~analysis.compare.arms.Diverged` if its logits are not finite.

    Raises :class:`InputError` if the model cannot be loaded or is too small for the documents.
    """
    import torch

    model = load_member(member)
    vocabulary = len(study.grammar.words)
    check_positions(model, member.label, max(study.evaluation.x_DT.shape[1], study.calibration.x_DT.shape[1]))

    def predict(x_BT: Ids) -> Any:
        """(B, T, V): ln q of the grammar's words after each prefix, in float64."""
        with torch.inference_mode():
            logits_BTV = model(input_ids=torch.from_numpy(x_BT).to(model.device), use_cache=False).logits
            log_q_BTV = logits_BTV[..., :vocabulary].double().log_softmax(-1)
        if not bool(torch.isfinite(log_q_BTV).all()):
            raise Diverged(member.label)
        return log_q_BTV.cpu().numpy()

    return predict
