from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from analysis.synonyms import encode as module
from analysis.synonyms.encode import Encoded, batches_of, encode_study
from analysis.synonyms.hidden_states import Reader
from analysis.synonyms.study import Study
from common.errors import InputError
from tests.analysis.models import FAMILIES, READ_ONE_BY_ONE, make_model
from tests.analysis.text import SEQUENCE_LENGTH, Text


@pytest.fixture(scope="module")
def encoded(study: Study, text: Text) -> Encoded:
    return encode_study(study)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_plain_sequences(family: str, encoded: Encoded) -> None:
    """At every place the state after the text, at every node that after the text and the path down to it."""
    model = make_model(family, len(encoded.vocabulary))
    reader = Reader(model, encoded, "m")
    assert reader.takes_trees == (family not in READ_ONE_BY_ONE)
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        for batch in reader.batches():
            h_RD = reader.states(batch)
            logits_RV = reader.logits(h_RD)
            for row in rng.choice(len(h_RD), 25, replace=False):
                path: list[int] = []
                above = int(row)
                while above >= batch.places:
                    path.append(int(batch.token_N[above - batch.places]))
                    above = int(batch.parent_N[above - batch.places])
                place = batch.place_C[above]
                before = encoded.passages[encoded.study.passage_C[place]][: encoded.position_C[place] + 1]
                plain = torch.from_numpy(np.concatenate([before, path[::-1]]).astype(np.int64))[None]
                torch.testing.assert_close(h_RD[row], model.base_model(plain).last_hidden_state[0, -1])
                torch.testing.assert_close(logits_RV[row], model(plain).logits[0, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "metric"])
def test_trees_and_sequences_of_their_own_agree(family: str, encoded: Encoded) -> None:
    reader = Reader(make_model(family, len(encoded.vocabulary)), encoded, "m")
    assert reader.takes_trees
    with torch.inference_mode():
        for batch in reader.batches():
            reader.takes_trees = True
            in_trees = reader.states(batch)
            reader.takes_trees = False
            torch.testing.assert_close(in_trees, reader.states(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("positions", "beside"), [(8192, 512), (1, 512), (100, 1), (300, 40)])
def test_batches_hold_every_place_query_and_node_once(
    encoded: Encoded, positions: int, beside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEQUENCE_POSITIONS", beside)
    study = encoded.study
    batches = list(batches_of(encoded, positions))
    places = np.concatenate([batch.place_C for batch in batches])
    queries = np.concatenate([batch.query_Q for batch in batches])
    assert sorted(places) == list(range(len(study.position_C)))
    assert sorted(queries) == list(range(len(study.unit_M)))
    for batch in batches:
        np.testing.assert_array_equal(batch.place_C[batch.place_Q], study.place_M[batch.query_Q])
        for index, query in enumerate(batch.query_Q):
            tree = encoded.trees[study.unit_M[query]]
            nodes = slice(batch.offset_Q[index], batch.offset_Q[index] + len(tree.token_E))
            np.testing.assert_array_equal(batch.token_N[nodes], tree.token_E)
            np.testing.assert_array_equal(batch.depth_N[nodes], tree.depth_E)
            assert (batch.place_N[nodes] == batch.place_Q[index]).all()
            first = tree.parent_E < 0
            assert (batch.parent_N[nodes][first] == batch.place_Q[index]).all()
            inner = batch.parent_N[nodes][~first] - batch.places - batch.offset_Q[index]
            np.testing.assert_array_equal(inner, tree.parent_E[~first])
        for low, high in batch.sequences:
            assert len(set(study.passage_C[low:high])) == 1
            sizes = [len(encoded.trees[u].token_E) for u in study.unit_M[np.isin(study.place_M, range(low, high))]]
            assert high - low == 1 or encoded.position_C[high - 1] + 1 + sum(sizes) <= beside
    assert len(batches) == 1 or positions < 8192


def gpt2(size: int, positions: int = 64, cls: type[GPT2LMHeadModel] = GPT2LMHeadModel) -> GPT2LMHeadModel:
    torch.manual_seed(2)
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": positions}
    return cls(GPT2Config(vocab_size=size, initializer_range=0.4, **shape)).eval()


def test_models_that_do_not_fit_are_refused_with_one_line(encoded: Encoded) -> None:
    size = len(encoded.vocabulary)
    with pytest.raises(InputError, match=rf"^m: the model has {size - 1} token embeddings .* {size} tokens"):
        Reader(gpt2(size - 1), encoded, "m")
    with pytest.raises(InputError, match=rf"^m: the model has {SEQUENCE_LENGTH - 1} positions .* {SEQUENCE_LENGTH} of"):
        Reader(gpt2(size, SEQUENCE_LENGTH - 1), encoded, "m")
    assert Reader(gpt2(size, SEQUENCE_LENGTH), encoded, "m").takes_trees  # and no position more is needed


def test_a_model_that_has_diverged_is_refused_as_such(encoded: Encoded) -> None:
    for value in (float("nan"), float("inf")):
        model = gpt2(len(encoded.vocabulary))
        model.transformer.wte.weight.data[7] = value
        with pytest.raises(InputError, match=r"^m: .* not finite; it has diverged"):
            Reader(model, encoded, "m")


def test_logits_that_look_past_the_last_hidden_state_are_refused(encoded: Encoded) -> None:
    class Copying(GPT2LMHeadModel):
        """Prefers the token that it has just read."""

        def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
            output = super().forward(input_ids=input_ids, **kwargs)
            output.logits = output.logits + torch.nn.functional.one_hot(input_ids, self.config.vocab_size)
            return output

    with pytest.raises(InputError, match=r"^m: .* not a function of its last hidden state alone"):
        Reader(gpt2(len(encoded.vocabulary), cls=Copying), encoded, "m")


def test_logits_are_compared_apart_from_what_all_tokens_share(encoded: Encoded) -> None:
    """A constant of 10,000 must not hide that a body takes no trees."""

    class Shifted(GPT2LMHeadModel):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits.double() + 1e4
            return output

    class Recency(Shifted):
        """Its attention falls off with the distance in columns, whatever the positions."""

        def __init__(self, config: GPT2Config) -> None:
            super().__init__(config)
            self.transformer.h[0].attn.register_forward_hook(self._add_recent, with_kwargs=True)

        @staticmethod
        def _add_recent(_: Any, args: Any, kwargs: Any, output: Any) -> Any:
            h_BLD = args[0] if args else kwargs["hidden_states"]
            return (output[0] + 0.5 * h_BLD.roll(2, dims=1), *output[1:])

    assert Reader(gpt2(len(encoded.vocabulary), cls=Shifted), encoded, "m").takes_trees
    assert not Reader(gpt2(len(encoded.vocabulary), cls=Recency), encoded, "m").takes_trees


def test_the_model_stays_as_it_is(encoded: Encoded) -> None:
    model = make_model("metric", len(encoded.vocabulary))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    body = model.base_model
    reader = Reader(model, encoded, "m")
    with torch.inference_mode():
        for batch in reader.batches():
            reader.logits(reader.states(batch))
    assert model.base_model is body
    assert not model.training
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
