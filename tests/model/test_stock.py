"""The model against transformers' own models with the same weights: forward, generation, what reads a signature."""

import logging

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedTokenizerFast, pipeline
from transformers.utils import logging as transformers_logging

from model import SwapHeadConfig, new_model

COMMON = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64}
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "initializer_range": 0.3}
GROUPED = SIZES | {"num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32, "tie_word_embeddings": True}
BODIES = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 16, "initializer_range": 0.3},
    "llama": GROUPED,
    "qwen3": GROUPED,
    "gemma2": GROUPED | {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "opt": SIZES | {"ffn_dim": 32, "word_embed_proj_dim": 12, "init_std": 0.3},
}
BLOOM = {"hidden_size": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}


def pair(kind):
    """A stock model, and ours with a linear head and its weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **COMMON, **(BODIES | {"bloom": BLOOM})[kind])
    stock = AutoModelForCausalLM.from_config(config).eval()
    head = {"kind": "linear", "soft_cap": getattr(config, "final_logit_softcapping", None)}
    ours = new_model(SwapHeadConfig(config, head=head, objective={"kind": "ce"}), seed=1).eval()
    ours.model.load_state_dict(stock.base_model.state_dict())
    return ours, stock


@pytest.fixture(scope="module", params=BODIES)
def models(request):
    return pair(request.param)


def padded(side):
    """Three rows of 7, 10 and 4 tokens, and their mask."""
    x_BT = torch.randint(3, 96, (3, 10), generator=torch.Generator().manual_seed(2))
    lengths_B1, places_T = torch.tensor([[7], [10], [4]]), torch.arange(10)
    mask_BT = places_T < lengths_B1 if side == "right" else places_T >= 10 - lengths_B1
    return {"input_ids": x_BT.where(mask_BT, 0), "attention_mask": mask_BT.long()}


X_BT = padded("right")["input_ids"].clamp(min=3)
POSITIONS_BT = torch.arange(10).expand(3, 10)
BLOCKED = torch.ones(10, 10).tril() * (
    torch.rand(10, 10, generator=torch.Generator().manual_seed(0)) < 0.7
) + torch.eye(10)
LABELS_BT = X_BT.masked_fill(POSITIONS_BT < 3, -100)
CALLS = {
    "plain": {},
    "left padding": padded("left"),
    "right padding": padded("right"),
    "positions": {"position_ids": POSITIONS_BT + 5},
    "packed": {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]] * 3)},
    "4-D mask": {"attention_mask": (BLOCKED > 0)[None, None].expand(3, 1, 10, 10), "position_ids": POSITIONS_BT},
    "cache position": {"cache_position": torch.arange(10)},
    "last logits": {"logits_to_keep": 3},
    "some logits": {"logits_to_keep": torch.tensor([1, 4])},
    "hidden states": {"output_hidden_states": True},
    "no cache": {"use_cache": False},
    "labels": {"labels": LABELS_BT},
    "items": {"labels": LABELS_BT, "num_items_in_batch": torch.tensor(50)},
    "shifted labels": {"labels": LABELS_BT, "shift_labels": LABELS_BT},
}


@pytest.mark.parametrize("call", CALLS)
def test_every_argument_of_forward(models, call):
    ours, stock = models
    arguments = {"input_ids": X_BT} | CALLS[call]
    with torch.no_grad():
        found, expected = ours(**arguments), stock(**arguments)
    assert found.keys() == expected.keys()
    for name in found.keys() - {"past_key_values"}:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


def test_a_tuple_instead_of_names(models):
    found, expected = (model(input_ids=X_BT, labels=LABELS_BT, return_dict=False)[:2] for model in models)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_embeddings_in_the_place_of_ids_and_a_cache_from_before(models):
    found: list[list[torch.Tensor]] = [[], []]
    for model, logits in zip(models, found, strict=True):
        cache = DynamicCache(config=model.config.get_text_config())
        embedded_BTD = model.get_input_embeddings()(X_BT[:, :6])
        mask_BT = padded("left")["attention_mask"]
        with torch.no_grad():
            first = model(inputs_embeds=embedded_BTD, attention_mask=mask_BT[:, :6], past_key_values=cache)
            later = model(input_ids=X_BT[:, 6:], attention_mask=mask_BT, past_key_values=cache)
        logits += [first.logits, later.logits]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("field", ["output_hidden_states", "use_cache"])
def test_what_a_configuration_asks_of_forward(models, field):
    """Where the body has a configuration of its own: set from outside, as the Trainer sets use_cache."""
    found = []
    for model in models:
        usual = getattr(model.config, field, field == "use_cache")
        setattr(model.config, field, not usual)
        with torch.no_grad():
            out = model(input_ids=X_BT, labels=LABELS_BT)
        setattr(model.config, field, usual)
        found.append(list(out))
    assert found[0] == found[1]


@pytest.mark.parametrize("tied", [True, False])
def test_weights_that_are_kept_elsewhere(tied, tmp_path):
    """Weights on the disk come when a module is called: the head's for the loss too."""
    text = AutoConfig.for_model("gpt2", **COMMON, **BODIES["gpt2"])
    model = new_model(SwapHeadConfig(text, head={"kind": "metric", "tied": tied}), seed=0).eval()
    model.save_pretrained(tmp_path / "saved")
    places = {"model": "disk" if tied else "cpu", "lm_head": "disk"}
    away = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", device_map=places, offload_folder=tmp_path)
    assert away.lm_head.weight.device.type == "meta"
    with torch.no_grad():
        found, expected = (m(input_ids=X_BT, labels=LABELS_BT) for m in (away, model))
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.logits, expected.logits)


def test_a_body_that_cannot_attend_by_sdpa():
    ours, stock = pair("bloom")
    torch.testing.assert_close(ours(**padded("left")).logits, stock(**padded("left")).logits, rtol=1e-5, atol=1e-5)


GENERATED = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "top_k": 20, "temperature": 1.3, "num_return_sequences": 2},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "chunks": {"prefill_chunk_size": 4},
}


@pytest.mark.parametrize(("how", "side"), [*((how, "left") for how in GENERATED), ("greedy", "right")])
def test_generation(models, how, side):
    rows = slice(0, 1) if how == "prompt lookup" else slice(None)
    prompt = {name: value[rows] for name, value in padded(side).items()}
    found, expected = [], []
    for model, tokens in zip(models, (found, expected), strict=True):
        torch.manual_seed(0)
        out = model.generate(
            **prompt, **GENERATED[how], max_new_tokens=6, return_dict_in_generate=True, output_logits=True
        )
        tokens += [out.sequences, *out.logits]
    assert torch.equal(found[0], expected[0])
    for a, b in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_generation_with_an_assistant(models):
    prompt = {name: value[:1] for name, value in padded("left").items()}
    assistant = pair("llama")[0]
    found, expected = (m.generate(**prompt, assistant_model=assistant, max_new_tokens=6) for m in models)
    assert torch.equal(found, expected)


class _Messages(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def test_pipeline_in_batches():
    """A batch of prompts of different lengths; and nothing is said of a model that is not supported."""
    words = WordLevel({f"w{i}": i for i in range(96)})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "w0"})
    tokenizer.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    prompts, said = ["w5 w9 w7", "w11", "w4 w8 w15 w16 w23 w42"], _Messages()
    logging.getLogger("transformers.pipelines.base").addHandler(said)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    ours, stock = (
        pipeline("text-generation", model=model, tokenizer=tokenizer, batch_size=3)(
            prompts, max_new_tokens=6, do_sample=False
        )
        for model in pair("gpt2")
    )
    transformers_logging.set_verbosity(verbosity)
    assert ours == stock
    assert not [line for line in said.lines if "not supported" in line]
