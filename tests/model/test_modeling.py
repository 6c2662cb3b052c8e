"""The model as a transformers model: saving, loading, tying, generating, checkpointing activations, carrying its code."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, GPT2Config, GPT2LMHeadModel

from model import SwapHeadConfig, blocks, final_norm, load_model, new_model

SMALL = {"vocab_size": 120, "bos_token_id": 0, "eos_token_id": 0, "max_position_embeddings": 32}
BODIES = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 16, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32},
    "qwen3": {
        **{"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2},
        **{"head_dim": 8, "hidden_size": 16, "intermediate_size": 32},
    },
}
HEADS = {
    "linear": {"kind": "linear"},
    "untied": {"kind": "linear", "tied": False, "bias": True},
    "metric": {"kind": "metric"},
    "apart": {"kind": "metric", "tied": False},
    "learned": {"kind": "metric", "scale": "learned", "feature_norm": "layernorm", "init": "unit"},
    "centred": {"kind": "metric", "centroid_norm": "centred"},
    "abstaining": {"kind": "metric", "abstain": True, "tied": False},
    "cosine": {"kind": "cosine", "learn_scale": True},
    "margin": {"kind": "cosine", "scale": 8.0, "margin": 0.3, "tied": False},
    "von Mises-Fisher": {"kind": "von_mises_fisher"},
    "harmonic": {"kind": "harmonic"},
    "harmonic apart": {"kind": "harmonic", "exponent": "gpt2", "tied": False},
    "mixture": {"kind": "mixture"},
    "dual": {"kind": "dual"},
    "mixture apart": {"kind": "mixture", "components": 2, "tied": False},
}


def make(body="gpt2", head="metric", objective="tfsd", seed=0):
    text = AutoConfig.for_model(body, **SMALL, **BODIES[body])
    return new_model(SwapHeadConfig(text, head=HEADS[head], objective={"kind": objective}), seed)


def tokens(rows=2, length=12):
    return torch.randint(1, 120, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("head", HEADS)
def test_round_trip_through_safetensors(body, head, tmp_path):
    model = make(body, head)
    tied = HEADS[head].get("tied", True)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"config.json", "model.safetensors", "heads.py", "modeling.py"}
    again = load_model(tmp_path)
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == tied
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_padded_vocabulary_survives_saving_and_is_never_generated(tmp_path):
    """100 of 120 rows are tokens; the other 20 are made as likely as can be."""
    text = AutoConfig.for_model("gpt2", **SMALL, **BODIES["gpt2"])
    model = new_model(SwapHeadConfig(text, head=HEADS["linear"], n_classes=100), seed=0)
    with torch.no_grad():
        model.lm_head.weight[100:] = 50 * model.model.ln_f.weight
        model.model.ln_f.bias.fill_(1.0)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    prompt = tokens(length=4).clamp(max=99)
    assert int(again(prompt).logits.argmax(-1).max()) < 100
    assert int(again.generate(prompt, max_new_tokens=12, do_sample=True, top_k=None).max()) < 100
    labels = prompt.clone()
    torch.testing.assert_close(
        again(prompt, labels=labels).loss,
        torch.nn.functional.cross_entropy(again(prompt).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()),
    )


@pytest.mark.parametrize("head", HEADS)
def test_tokens_added_later_can_be_predicted(head, tmp_path):
    model = make(head=head)
    before = model(tokens()).logits
    model.resize_token_embeddings(130)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    after = again(tokens()).logits
    assert after.shape == (2, 12, 130)
    assert after.isfinite().all()
    if HEADS[head]["kind"] != "mixture":  # whose logits are normalised over all tokens
        torch.testing.assert_close(after[..., :120], before)
    assert again(torch.tensor([[1, 129]]), labels=torch.tensor([[1, 129]])).loss.isfinite()


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("head", [name for name in HEADS if HEADS[name].get("tied", True)])
def test_generation_with_a_cache_gives_the_tokens_it_gives_without(body, head):
    model = make(body, head).eval()
    prompt = tokens(length=4)
    with_cache, without = (
        model.generate(prompt, max_new_tokens=12, do_sample=False, use_cache=c) for c in (True, False)
    )
    assert torch.equal(with_cache, without)
    assert with_cache.shape[1] > 4


@pytest.mark.parametrize("head", HEADS)
def test_a_padded_batch_is_continued_as_each_of_its_prompts_alone(head):
    """Padded on the left; and padded on the right the logits of real positions are the same."""
    model = make("llama", head).eval()
    prompts = [tokens(1, length) for length in (3, 7, 5)]
    alone = [model.generate(p, max_new_tokens=6, do_sample=False)[0, p.shape[1] :] for p in prompts]
    for left in (True, False):
        sides = [(7 - p.shape[1], 0) if left else (0, 7 - p.shape[1]) for p in prompts]
        batch, mask = (
            torch.cat([torch.nn.functional.pad(x(p), side) for p, side in zip(prompts, sides, strict=True)])
            for x in (torch.clone, torch.ones_like)
        )
        if left:
            found = model.generate(batch, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
            for row, expected in zip(found[:, 7:], alone, strict=True):
                assert torch.equal(row[: len(expected)], expected)
        else:
            logits = model(batch, attention_mask=mask).logits
            for row, prompt in zip(logits, prompts, strict=True):
                torch.testing.assert_close(row[: prompt.shape[1]], model(prompt).logits[0], rtol=1e-4, atol=1e-5)


def test_loss_follows_the_transformers_convention():
    """Labels are shifted inside; the loss is a mean, or a sum over num_items_in_batch; it equals that of GPT2LMHeadModel."""
    text = GPT2Config(**SMALL, **BODIES["gpt2"])
    reference = GPT2LMHeadModel(text).eval()
    model = make(head="linear", objective="ce").eval()
    model.model.load_state_dict(reference.transformer.state_dict())
    labels = tokens()
    labels[0, 5:] = -100
    expected = reference(input_ids=tokens(), labels=labels)
    found = model(input_ids=tokens(), labels=labels)
    torch.testing.assert_close(found.loss, expected.loss)
    count = (labels[:, 1:] != -100).sum()
    torch.testing.assert_close(
        model(input_ids=tokens(), labels=labels, num_items_in_batch=7).loss, expected.loss * count / 7
    )
    shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    assert torch.equal(model(input_ids=tokens(), shift_labels=shifted).loss, found.loss)
    torch.testing.assert_close(found.logits, expected.logits)
    assert found.keys() == expected.keys()
    assert model(input_ids=tokens(), logits_to_keep=1).logits.shape == (2, 1, 120)


@pytest.mark.parametrize("head", HEADS)
def test_without_logits_the_loss_is_the_same_and_comes_with_its_tokens(head):
    model = make(head=head)
    labels = tokens().masked_fill(torch.arange(12) < 4, -100)
    usual = model(input_ids=tokens(), labels=labels)
    found = model(input_ids=tokens(), labels=labels, skip_logits=True, statistics=True)
    assert (found.logits, usual.losses) == (None, None)
    assert torch.equal(found.loss, usual.loss)
    assert torch.equal(found.losses.objective_sum / found.losses.valid_N.sum(), found.loss)
    logits = usual.logits
    if HEADS[head].get("abstain"):
        abstaining = model.lm_head(model.model(tokens()).last_hidden_state, lambda head, f_ND: head.shift(f_ND))
        logits = torch.cat([logits, abstaining.view(2, 12, 1)], 2)
    log_p = logits.log_softmax(-1)[:, :-1].gather(2, tokens()[:, 1:, None]).squeeze(2)
    torch.testing.assert_close(-found.losses.nll_N.view(2, 12)[:, 3:-1], log_p[:, 3:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.losses.statistics["logit/max"].view(2, 12)[:, 3:-1], logits.amax(-1)[:, 3:-1], rtol=1e-4, atol=1e-4
    )


def test_logits_beside_the_loss_have_gradients():
    """As in a stock model, whose logits a loss of the user's own may be made of."""
    model = make(head="linear", objective="ce")
    labels = tokens()
    logits = model(input_ids=tokens(), labels=labels).logits[:, :-1]
    own = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    losses = (own, model(input_ids=tokens(), labels=labels).loss)
    for a, b in zip(*(torch.autograd.grad(x, list(model.parameters())) for x in losses), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_is_as_wide_as_what_it_gets(head):
    """OPT's last hidden states may be narrower than its hidden size."""
    sizes = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "hidden_size": 16,
        "ffn_dim": 32,
        "word_embed_proj_dim": 12,
    }
    text = AutoConfig.for_model("opt", **SMALL, pad_token_id=1, **sizes)
    choice = HEADS[head] | ({"scale": "article"} if head == "metric" else {})
    model = new_model(SwapHeadConfig(text, head=choice), seed=0)
    assert model.lm_head.weight.shape == (120, 12)
    assert model(input_ids=tokens(), labels=tokens()).logits.isfinite().all()
    assert head != "metric" or model.lm_head.scale() == pytest.approx((8 * 12) ** -0.5)


def test_a_batch_counts_once_in_the_running_statistics():
    """Loss and logits of one forward pass are made of the same normalised features."""
    found = []
    for keywords in ({}, {"skip_logits": True}):
        text = AutoConfig.for_model("gpt2", **SMALL, **BODIES["gpt2"])
        head = {"kind": "metric", "feature_norm": "batchnorm"}
        model = new_model(SwapHeadConfig(text, head=head), seed=0).train()
        model(input_ids=tokens(), labels=tokens(), **keywords)
        found.append(model.lm_head.batch_norm.state_dict())
    assert found[0]["num_batches_tracked"] == 1
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_the_body_starts_the_same_under_every_head():
    bodies = [make(head=head).model.state_dict() for head in HEADS if HEADS[head].get("init", "normal") == "normal"]
    for other in bodies[1:]:
        assert all(torch.equal(other[name], value) for name, value in bodies[0].items())


def test_linear_and_metric_start_with_the_same_loss_at_the_equivalent_scale():
    """At g = 1/2 the logits differ by the bias -||w_k||^2/2, which is next to nothing at initialisation."""
    linear, metric = (
        make(head=head, objective="ce")(input_ids=tokens(), labels=tokens()).loss for head in ("linear", "metric")
    )
    assert abs(float(linear.detach() - metric.detach())) < 0.01


@pytest.mark.parametrize("head", ["linear", "metric", "margin"])
def test_activation_checkpointing_changes_no_gradient(head):
    gradients = []
    for checkpointing in (False, True):
        model = make(head=head).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(input_ids=tokens(), labels=tokens(), use_cache=False).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_checkpoint_carries_its_own_code(tmp_path):
    """A process that knows nothing of the project loads it with trust_remote_code and generates the same, padded or not."""
    model = make(head="learned").eval()
    padded = "torch.tensor([[3, 4, 5], [0, 0, 7]]), attention_mask=torch.tensor([[1, 1, 1], [0, 0, 1]])"
    model.save_pretrained(tmp_path / "checkpoint")
    script = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained('checkpoint', trust_remote_code=True).eval()\n"
        "assert type(model).__module__.startswith('transformers_modules'), type(model)\n"
        f"print(model.generate({padded}, max_new_tokens=8, do_sample=False).tolist())\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    alone = model.generate(torch.tensor([[7]]), max_new_tokens=8, do_sample=False)
    expected = [
        model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=8, do_sample=False)[0].tolist(),
        [0, 0, *alone[0].tolist()],
    ]
    assert result.stdout.strip().splitlines()[-1] == str(expected)


def test_loading_never_runs_a_checkpoints_own_code(tmp_path):
    make().save_pretrained(tmp_path)
    (tmp_path / "modeling.py").write_text("raise SystemExit('the code in the checkpoint was run')\n")
    assert type(load_model(tmp_path)).__module__ == "model.modeling"


def test_a_plain_transformers_checkpoint_loads_too(tmp_path):
    GPT2LMHeadModel(GPT2Config(**SMALL, **BODIES["gpt2"])).save_pretrained(tmp_path)
    assert isinstance(load_model(tmp_path), GPT2LMHeadModel)


@pytest.mark.parametrize("body", ["gpt2", "llama", "qwen3", "opt", "gpt_neox", "mistral", "gemma2"])
def test_blocks_and_final_norm_are_found_in_any_decoder(body):
    """The final norm is what the last hidden state comes out of, and the last block what goes in."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "vocab_size": 50, "pad_token_id": 0}
    grouped = {"intermediate_size": 32, "num_key_value_heads": 2, "head_dim": 8}
    small = {"opt": {"ffn_dim": 32, "word_embed_proj_dim": 16}, "gpt2": {}, "gpt_neox": {"intermediate_size": 32}}
    model = AutoModel.from_config(AutoConfig.for_model(body, **sizes, **small.get(body, grouped))).eval()
    seen = {}
    final_norm(model).register_forward_hook(lambda module, x, y: seen.update(norm=(x[0], y)))
    blocks(model)[-1].register_forward_hook(lambda module, x, y: seen.update(block=y[0] if isinstance(y, tuple) else y))
    out = model(input_ids=torch.randint(1, 50, (1, 6)))
    assert len(blocks(model)) == 2
    assert torch.equal(seen["norm"][1], out.last_hidden_state)
    assert torch.equal(seen["norm"][0], seen["block"])


def rewrite(folder, change):
    """Change the names or values of the weights that were saved in ``folder``."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda w: {f"_orig_mod.{name}": weight for name, weight in w.items()},  # what torch.compile's wrapper saves
            r"^missing weights: lm_head.bias, .* \(\d+ in all\); weights that are not the model's: _orig_mod\.",
        ),
        (
            lambda w: {n: x for n, x in w.items() if n != "model.ln_f.bias"},
            r"^missing weights: model.ln_f.bias$",
        ),
        (lambda w: {**w, "extra": torch.zeros(2)}, r"^weights that are not the model's: extra$"),
        (lambda w: {**w, "model.ln_f.bias": torch.zeros(3)}, r"^weights of another shape: model.ln_f.bias$"),
    ],
)
def test_weights_that_are_not_exactly_the_models_are_refused_by_name(change, told, tmp_path):
    make(head="untied").save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=told):
        load_model(tmp_path)


def test_of_a_guests_checkpoint_missing_weights_are_refused_and_surplus_ones_named(tmp_path):
    """GPT-2 as others save it: the head's weight is the embedding's and not in the file."""
    GPT2LMHeadModel(GPT2Config(**SMALL, **BODIES["gpt2"])).save_pretrained(tmp_path)
    load_model(tmp_path)
    rewrite(tmp_path, lambda w: {**w, "value_head.weight": torch.zeros(2)})
    with pytest.warns(UserWarning, match=r"not used: weights that are not the model's: value_head.weight$"):
        load_model(tmp_path)
    rewrite(tmp_path, lambda w: {n: x for n, x in w.items() if "h.1.mlp.c_fc.bias" not in n})
    with pytest.raises(
        ValueError,
        match=r"^missing weights: transformer.h.1.mlp.c_fc.bias; .*: value_head",
    ):
        load_model(tmp_path)


def test_a_body_may_come_without_its_head(tmp_path):
    GPT2LMHeadModel(GPT2Config(**SMALL, **BODIES["gpt2"], tie_word_embeddings=False)).save_pretrained(tmp_path)
    rewrite(tmp_path, lambda w: {n: x for n, x in w.items() if n != "lm_head.weight"})
    with pytest.raises(ValueError, match=r"^missing weights: lm_head.weight$"):
        load_model(tmp_path)
    load_model(tmp_path, body_only=True)
