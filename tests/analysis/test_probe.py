from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from analysis import probe
from analysis.pairs import Pair
from analysis.probe import Questions, ask
from analysis.words import Study, plan_study
from configs.errors import InputError
from model import load_model
from tests.analysis.corpus import PAIRS, SEQUENCE_LENGTH, open_corpus, write_model


@pytest.fixture(scope="module")
def study(corpus: Path) -> Study:
    store = open_corpus(corpus)
    pairs = [*(Pair(*pair) for pair in PAIRS), Pair("big", "house")]  # a word in two pairs
    ids = (store.load_tokenizer(), store.train.ids, store.validation.ids)
    return plan_study(pairs, *ids, sequence_length=SEQUENCE_LENGTH, contexts_per_word=9)


def plain_model(size: int, **options: int) -> GPT2LMHeadModel:
    torch.manual_seed(2)
    config = GPT2Config(
        vocab_size=size, n_layer=1, n_head=2, n_embd=16, n_positions=SEQUENCE_LENGTH, initializer_range=0.5, **options
    )
    return GPT2LMHeadModel(config).eval()


def test_the_padding_of_a_vocabulary_is_no_answer(study: Study, corpus: Path) -> None:
    """A model whose embedding has rows beyond the tokens answers as it does without them."""
    folder = write_model(corpus, "probe_padded", seed=1, head="metric") / "checkpoints" / "step_00000001"
    plain, padded = load_model(folder), load_model(folder)
    padded.resize_token_embeddings(len(study.vocabulary) + 20)
    padded.lm_head.n_classes = len(study.vocabulary)
    questions = Questions.of(study)
    answers = [ask(model, study, questions, label="m", progress=False) for model in (plain, padded)]
    for name in ("log_p_MK", "log_share_MK", "rank_MK", "entropy_M"):
        np.testing.assert_array_equal(getattr(answers[0], name), getattr(answers[1], name))


@pytest.mark.parametrize("head", ["plain", "metric"])
def test_predictions_are_those_of_the_definition_in_float64(
    study: Study, corpus: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if head == "plain":
        model = plain_model(len(study.vocabulary))
    else:
        model = load_model(write_model(corpus, "probe_metric", seed=1, head=head) / "checkpoints" / "step_00000001")
    monkeypatch.setattr(probe, "_BODY_TOKENS", 5 * SEQUENCE_LENGTH)  # several groups of windows, the last one partial
    monkeypatch.setattr(probe, "_HEAD_PLACES", 4)
    questions = Questions.of(study)
    answers = ask(model, study, questions, label="m", progress=False)
    assert len(questions.place_M) == sum(len(study.places[unit.word]) for unit in study.units)
    model = model.double()
    for m, (place, unit_index) in enumerate(zip(questions.place_M, questions.unit_M, strict=True)):
        unit = study.units[unit_index]
        assert study.ids[place] == unit.word
        start = (place - 1) // SEQUENCE_LENGTH * SEQUENCE_LENGTH
        with torch.no_grad():
            before = torch.from_numpy(study.ids[start:place].astype(np.int64))[None]
            p_V = model(input_ids=before).logits[0, -1].double().softmax(-1).numpy()
        tokens = [unit.word, unit.synonym, *unit.controls]
        np.testing.assert_allclose(np.exp(answers.log_p_MK[m]), p_V[tokens], rtol=2e-4)
        rest = p_V.sum() - p_V[unit.word]
        np.testing.assert_allclose(np.exp(answers.log_share_MK[m, 1:]), p_V[tokens[1:]] / rest, rtol=2e-4)
        np.testing.assert_allclose(answers.entropy_M[m], -(p_V * np.log(p_V)).sum(), rtol=2e-4)
        assert answers.rank_MK[m].tolist() == [1 + int((p_V > p_V[token]).sum()) for token in tokens]


def test_a_certain_word_leaves_a_share_with_all_its_digits(study: Study) -> None:
    class Certain(torch.nn.Module):
        """Logits of 60 for one token and small ones for the others, whatever the hidden state."""

        def forward(self, h: torch.Tensor) -> torch.Tensor:
            logits = torch.arange(len(study.vocabulary), dtype=torch.float32) / 1000
            logits[study.units[0].word] = 60.0
            return logits.expand(*h.shape[:-1], -1)

    model = plain_model(len(study.vocabulary), tie_word_embeddings=False)
    model.lm_head = Certain()
    single = replace(study, units=study.units[:1])
    answers = ask(model, single, Questions.of(single), label="m", progress=False)
    assert (np.exp(answers.log_p_MK[:, 0]) == 1.0).all()  # 1 - p would be 0
    weights = np.exp(np.arange(len(study.vocabulary)) / 1000)
    weights[study.units[0].word] = 0
    expected = weights[study.units[0].synonym] / weights.sum()
    np.testing.assert_allclose(np.exp(answers.log_share_MK[:, 1]), expected, rtol=1e-5)


def test_models_that_cannot_be_measured_are_refused(study: Study) -> None:
    questions = Questions.of(study)
    with pytest.raises(InputError, match=r"m: .* token embeddings"):
        ask(plain_model(len(study.vocabulary) - 1), study, questions, label="m", progress=False)
    longer = replace(study, sequence_length=SEQUENCE_LENGTH + 1)
    with pytest.raises(InputError, match=r"m: the model has 16 positions"):
        ask(plain_model(len(study.vocabulary)), longer, questions, label="m", progress=False)
    diverged = plain_model(len(study.vocabulary))
    diverged.transformer.wpe.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="diverged"):
        ask(diverged, study, questions, label="m", progress=False)

    class Scaled(GPT2LMHeadModel):
        def forward(self, *args: object, **kwargs: object) -> object:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 2
            return output

    scaled = Scaled(plain_model(len(study.vocabulary)).config).eval()
    with pytest.raises(InputError, match="scaled or capped"):
        ask(scaled, study, questions, label="m", progress=False)
