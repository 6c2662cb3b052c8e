"""What a model does not know: distances to the nearest class, their threshold, and generation that stops there."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import load_model
from model.unknown import nearest_distances, threshold_at

from . import naive
from .test_modeling import HEADS, make, tokens
from .test_objectives import HEADS_TRIED, SHAPES, data
from .test_objectives import make as make_head

METRIC = [name for name, options in HEADS.items() if options["kind"] == "metric"]


@pytest.mark.parametrize("abstain", [False, True])
@given(**SHAPES, g=st.sampled_from([0.05, 0.5, 2.0]))
def test_the_nearest_class_is_one_of_the_vocabulary(abstain, V, D, N, seed, g):
    head, _ = make_head("metric", "ce", D, V, {"scale": g, "abstain": abstain})
    h_ND, _ = data(V, D, N, seed, head)
    expected_N = -naive.metric_logits(h_ND, head.weight, g).amax(1)
    torch.testing.assert_close(
        head(h_ND, lambda head, f_ND: nearest_distances(head, f_ND, rows=4)), expected_N, rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("name", [name for name, (kind, _) in HEADS_TRIED.items() if kind != "metric"])
def test_heads_without_distances_are_refused(name):
    head, _ = make_head(HEADS_TRIED[name][0], "ce", 4, 9, HEADS_TRIED[name][1])
    with pytest.raises(ValueError, match="has no distances to its classes; use the metric head"):
        head(torch.ones(2, 4).double(), lambda head, f_ND: nearest_distances(head, f_ND, rows=4))


@given(
    distances=st.lists(st.floats(0, 100, width=32), min_size=1, max_size=200),
    share=st.floats(0.001, 0.999),
)
def test_the_threshold_is_the_least_that_flags_no_more_than_the_share(distances, share):
    distance_N = torch.tensor(distances)
    threshold = threshold_at(distance_N, share)
    assert float((distance_N > threshold).double().mean()) <= share
    below = distance_N[distance_N < threshold]
    assert not len(below) or float((distance_N > below.max()).double().mean()) > share


@pytest.mark.parametrize("head", METRIC)
def test_a_threshold_is_saved_with_the_model(head, tmp_path):
    model = make(head=head).eval()
    with pytest.raises(ValueError, match=r"no threshold of what it knows: set config\.unknown_distance"):
        model.unknown(tokens())
    near_BT = model(input_ids=tokens(), nearest=True).nearest.detach()
    z_BTV = model(input_ids=tokens()).logits
    torch.testing.assert_close(near_BT, -z_BTV.amax(-1))
    model.config.unknown_distance, model.config.unknown_fpr = threshold_at(near_BT.flatten(), 0.3), 0.3
    unknown_BT = model.unknown(tokens())
    assert 0 < float(unknown_BT.float().mean()) <= 0.3
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert again.config.unknown_fpr == 0.3
    assert torch.equal(again.unknown(tokens()), unknown_BT)


def test_a_model_without_one_is_saved_as_ever(tmp_path):
    make().save_pretrained(tmp_path)
    assert "unknown" not in (tmp_path / "config.json").read_text()


def test_what_is_not_a_number_is_unknown():
    model = make().eval()
    model.config.unknown_distance = 1e9
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = torch.nan
    assert bool(model.unknown(torch.tensor([[5, 5]])).all())


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_ends_where_it_is_unknown(use_cache):
    model, prompt_BT = make(head="metric").eval(), tokens(3, 4)
    options = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, "eos_token_id": 0, "use_cache": use_cache}
    options["attention_mask"] = torch.ones_like(prompt_BT)
    whole_BT = model.generate(prompt_BT, **options)
    assert whole_BT.shape == (3, 13)
    assert int(whole_BT.min()) > 0, "no sequence ends of itself"
    distance_BT = model(input_ids=whole_BT[:, :-1], nearest=True).nearest.detach()[
        :, 3:
    ]  # of what each token was drawn from
    model.config.unknown_distance = float(distance_BT.flatten().sort().values[-6])
    beyond_BT = distance_BT > model.config.unknown_distance + 1e-5
    with model.stop_at_unknown(stop=False) as watch:
        assert torch.equal(model.generate(prompt_BT, stopping_criteria=[watch], **options), whole_BT)
    assert torch.equal(torch.stack(watch.unknown, 1), beyond_BT)
    with model.stop_at_unknown() as watch:
        stopped_BT = model.generate(prompt_BT, stopping_criteria=[watch], **options)
    for row, beyond_T in enumerate(beyond_BT):
        kept = int(beyond_T.nonzero()[0]) + 1 if bool(beyond_T.any()) else 9
        generated_T = stopped_BT[row, 4:]
        assert torch.equal(generated_T[:kept], whole_BT[row, 4:][: min(kept, len(generated_T))])
        assert bool((generated_T[kept:] == 0).all())
    assert not model.lm_head._forward_hooks
