"""Planted faults of parameters, moments, gradients and the optimizer's settings, on a real model against naive definitions."""

import struct
from dataclasses import dataclass

import pytest
import torch

from common.errors import InputError
from configs.kinds import TABLES
from configs.load import load_config
from tests.conftest import ROOT
from tests.training.built import built
from training.step import disturb_state, training_step

SGD = (f"plugins=[{ROOT / 'tests' / 'plugins' / 'momentum.py'}]", "optimizer={kind: sgd, lr: 0.01}")


@pytest.fixture(autouse=True)
def optimizers_as_before():
    """What a test's plug-ins register is nobody else's: tests share a process."""
    before = [(table, dict(table)) for table in TABLES.values()]
    yield
    for table, kinds in before:
        table.clear()
        table.update(kinds)


@dataclass
class Taken:
    """What the stresses of step 3 change: parameters and moments by name, before and after."""

    before: dict
    after: dict
    run: object

    def changed(self):
        return {name for name in self.before if not torch.equal(self.before[name], self.after[name])}


def state_of(run):
    found = {}
    for name, p in run.bare_model().named_parameters():
        found[name] = p.detach().clone()
        found |= {f"{slot} of {name}": t.clone() for slot, t in run.optimizer.optimizer.state[p].items()}
    return found


@pytest.fixture
def disturb(recipe):
    """Two sound steps, and then what a stress does at step 3."""

    def take(stress, *overrides):
        run = built(recipe, f"stress=[{stress}]", *overrides)
        for step in (1, 2):
            training_step(run, step)
        before = state_of(run)
        disturb_state(run, 3)
        return Taken(before, state_of(run), run)

    return take


def parameters(taken):
    return {name for name in taken.before if " of " not in name}


def test_weights_are_scaled_by_name_and_by_group(disturb):
    taken = disturb("{kind: scale_weights, step: 3, parameters: 'mlp.*bias$', factor: -3.0}")
    expected = {f"model.h.{i}.mlp.{part}.bias" for i in (0, 1) for part in ("c_fc", "c_proj")}
    assert taken.changed() == expected
    assert all(torch.equal(taken.after[name], taken.before[name] * -3) for name in expected)
    (stress,) = taken.run.stresses
    assert stress.describe(3, 3) == "model.h.0.mlp.c_fc.bias and 3 more times -3"
    group = disturb("{kind: scale_weights, step: 3, parameters: embedding, factor: 2.0}")
    assert group.changed() == {"model.wte.weight", "model.wpe.weight"}


def test_parameters_are_rounded_to_bfloat16_and_stay_float32(disturb):
    taken = disturb("{kind: half_parameters, step: 3}")
    for name in parameters(taken):
        assert taken.after[name].dtype == torch.float32
        assert torch.equal(taken.after[name], taken.before[name].to(torch.bfloat16).float())
    assert taken.changed() <= parameters(taken)
    assert "model.wte.weight" in taken.changed()


@pytest.mark.parametrize("count", ["keep", "reset"])
def test_moments_are_reset_with_or_without_their_step_count(count, disturb):
    taken = disturb(f"{{kind: stale_moments, step: 3, what: reset, step_count: {count}}}")
    for name, tensor in taken.after.items():
        slot = name.partition(" of ")[0]
        if slot in ("exp_avg", "exp_avg_sq"):
            assert not tensor.any()
        elif slot == "step":
            assert float(tensor) == (2 if count == "keep" else 0)
    assert not taken.changed() & parameters(taken)


@pytest.mark.parametrize(
    ("between", "one", "other"),
    [
        ("null", "model.h.0.", "model.h.1."),
        ("[model.h.1.ln_1, model.ln_f]", "model.h.1.ln_1.", "model.ln_f."),
        ("[model.ln_f.weight, model.ln_f.bias]", "model.ln_f.weight", "model.ln_f.bias"),
    ],
)
def test_moments_of_two_parts_are_exchanged(between, one, other, disturb):
    taken = disturb(f"{{kind: stale_moments, step: 3, what: swap, between: {between}}}")
    expected = {}
    for name, tensor in taken.before.items():
        slot, _, parameter = name.partition(" of ")
        if slot.startswith("exp_avg") and parameter.startswith((one, other)):
            source = other + parameter[len(one) :] if parameter.startswith(one) else one + parameter[len(other) :]
            expected[name] = taken.before[f"{slot} of {source}"]
        else:
            expected[name] = tensor
    assert all(torch.equal(taken.after[name], tensor) for name, tensor in expected.items())
    assert taken.changed()


def bits(value):
    return struct.unpack("<I", struct.pack("<f", value))[0]


@pytest.mark.parametrize("bit", [0, 22, 30, 31])
@pytest.mark.parametrize(("what", "of"), [("parameter", ""), ("moment, moment: exp_avg", "exp_avg of ")])
def test_one_bit_of_one_number_is_flipped(what, of, bit, disturb):
    taken = disturb(f"{{kind: flip_bit, step: 3, what: {what}, bit: {bit}, parameter: 'h.0.attn'}}")
    (name,) = taken.changed()
    assert name.startswith(f"{of}model.h.0.attn")
    (place,) = (taken.before[name].view(torch.int32) != taken.after[name].view(torch.int32)).nonzero().tolist()
    before, after = float(taken.before[name][tuple(place)]), float(taken.after[name][tuple(place)])
    assert bits(before) ^ bits(after) == 1 << bit
    (stress,) = taken.run.stresses
    assert stress.describe(3, 3) == f"bit {bit} of {name}{place} flipped"


def test_every_element_may_be_hit(recipe):
    run = built(recipe, "stress=[{kind: flip_bit, step: 1, steps: null, what: parameter, parameter: 'ln_f|h.0.ln_1'}]")
    (stress,) = run.stresses
    seen = {stress.describe(step, step) for step in range(1, 2000)}
    assert len(seen) == 4 * 32


class Gradients:
    """The gradients of a step, as a stress leaves them and as they are without it."""

    def __init__(self, run, step):
        (stress,) = run.stresses
        torch.manual_seed(step)
        for p in run.bare_model().parameters():
            p.grad = torch.randn_like(p) * torch.rand(())
        self.names = [name for name, _ in run.bare_model().named_parameters()]
        self.grads = [p.grad for p in run.bare_model().parameters()]
        self.before = [g.clone() for g in self.grads]
        disturb_state(run, step)
        stress.gradients(step, self.grads)


def test_one_bit_of_a_gradient_is_flipped(recipe):
    run = built(recipe, "stress=[{kind: flip_bit, step: 3, steps: 2, what: gradient}]")
    said = []
    for step in (3, 4):
        g = Gradients(run, step)
        ((name, place),) = [
            (name, place)
            for name, before, after in zip(g.names, g.before, g.grads, strict=True)
            for place in (before.view(torch.int32) != after.view(torch.int32)).nonzero().tolist()
        ]
        said.append(run.stresses[0].describe(step, step))
        assert said[-1] == f"bit 30 of the gradient of {name}{place} flipped"
    assert said[0] != said[1]


def test_noise_is_in_proportion_to_each_gradient_and_anew_at_each_step(recipe):
    run = built(recipe, "stress=[{kind: gradient_noise, step: 3, steps: 2, factor: 0.5}]")
    noises = []
    for step in (3, 4):
        g = Gradients(run, step)
        noise = [
            (after - before) / before.square().mean().sqrt() for before, after in zip(g.before, g.grads, strict=True)
        ]
        noises.append(torch.cat([n.flatten() for n in noise if n.numel() > 1000]))
        for one in noise:
            if one.numel() > 1000:
                assert float(one.std()) == pytest.approx(0.5, rel=0.1)
        same = Gradients(run, step)
        assert all(map(torch.equal, same.grads, g.grads))
    assert abs(float(torch.corrcoef(torch.stack(noises))[0, 1])) < 0.05


def test_settings_hold_for_their_steps_alone(recipe):
    run = built(recipe, "stress=[{kind: optimizer_settings, step: 2, beta2: 0.5, eps: 0.01}]")
    seen = []
    for step in (1, 2, 3):
        training_step(run, step)
        seen.append([(group["betas"], group["eps"]) for group in run.optimizer.param_groups])
    usual = [((0.9, 0.95), 1e-8)] * 2
    assert seen == [usual, [((0.9, 0.5), 0.01)] * 2, usual]
    assert run.stresses[0].describe(2, 2) == "beta2 0.5, eps 0.01"


def test_a_dead_rank_s_share_is_missing_in_the_mean_over_all(recipe):
    """Its gradient is that of the other rows, divided by the targets of all."""
    own = "optimizer.clip_norm=null"
    run = built(recipe, "stress=[{kind: dead_rank, step: 1, ranks: 4, rank: 3}]", own)
    x_BT, y_BT = run.batches.at(1)
    y_BT[6:] = -100
    model = run.bare_model()
    total = torch.tensor(8 * 32)
    model(input_ids=x_BT, shift_labels=y_BT, num_items_in_batch=total, skip_logits=True).loss.backward()
    expected = float(torch.stack([p.grad.norm() for p in model.parameters()]).norm())
    model.zero_grad()
    training_step(run, 1)
    (row,) = run.recorder.transfer().rows
    assert row["grad_norm/total"] == pytest.approx(expected, rel=1e-5)
    whole = built(recipe, own)
    training_step(whole, 1)
    assert row["grad_norm/total"] < 0.9 * whole.recorder.transfer().rows[0]["grad_norm/total"]


REFUSED = [
    (
        "{kind: corrupt_sequences, step: 5, sequences: 2, pattern: random, period: 5}",
        "period: has no effect with pattern=random; leave it out",
    ),
    (
        "{kind: corrupt_sequences, step: 5, sequences: 2, pattern: shuffled, repeats: 5}",
        "repeats: has no effect with pattern=shuffled; leave it out",
    ),
    (
        "{kind: corrupt_sequences, step: 5, sequences: 2, pattern: repeated, rare_share: 0.5}",
        "rare_share: has no effect with pattern=repeated; leave it out",
    ),
    (
        "{kind: corrupt_sequences, step: 5, sequences: 2, pattern: repeated_span}",
        "repeats: 32 times 4 tokens do not fit into the 33 of a sequence with its last target; at most 8",
    ),
    ("{kind: corrupt_sequences, step: 5, sequences: 9, pattern: rare}", "sequences: 9 is more than train.batch_size=8"),
    ("{kind: label_noise, step: 5, share: 1.5}", "share: input should be less than or equal to 1, but is 1.5"),
    ("{kind: foreign_text, step: 5, paths: []}", "paths: list should have at least 1 item"),
    ("{kind: foreign_text, step: 5, paths: [x.txt], sequences: 9}", "sequences: 9 is more than train.batch_size=8"),
    ("{kind: optimizer_settings, step: 5}", "kind: optimizer_settings changes nothing; give beta1, beta2 or eps"),
    ("{kind: scale_weights, step: 5, parameters: '(', factor: 2.0}", "parameters: '(' is not a regular expression: "),
    (
        "{kind: flip_bit, step: 5, what: moment}",
        "moment: is required with what=moment; the optimizer has exp_avg, exp_avg_sq",
    ),
    ("{kind: flip_bit, step: 5, what: moment, moment: exp}", "moment: exp: the optimizer has exp_avg, exp_avg_sq"),
    (
        "{kind: flip_bit, step: 5, what: gradient, moment: exp_avg}",
        "moment: has no effect with what=gradient; leave it out",
    ),
    ("{kind: flip_bit, step: 1, what: moment, moment: exp_avg}", "step: at step 1 there are no moments yet; from 2 on"),
    ("{kind: stale_moments, step: 1, what: reset}", "step: at step 1 there are no moments yet; from 2 on"),
    (
        "{kind: stale_moments, step: 5, what: swap, step_count: reset}",
        "step_count: has no effect with what=swap; leave it out",
    ),
    (
        "{kind: stale_moments, step: 5, what: reset, between: [a, b]}",
        "between: has no effect with what=reset; leave it out",
    ),
    ("{kind: short_sequences, step: 5, parts: 3}", "parts: 3 does not divide data.sequence_length=32"),
    ("{kind: small_batch, step: 5, sequences: 8}", "sequences: 8 is not less than train.batch_size=8"),
    ("{kind: dead_rank, step: 5, ranks: 9}", "ranks: 9 is more than train.batch_size=8"),
    ("{kind: dead_rank, step: 5, ranks: 4, rank: 4}", "rank: 4 is not one of the ranks 0 to 3"),
    ("{kind: half_parameters, step: 99}", "step: 99 comes after the last step, train.steps=30"),
]
"""By a look at the configuration."""


@pytest.mark.parametrize(("stress", "expected"), REFUSED)
def test_a_mistake_is_one_line(stress, expected, recipe):
    with pytest.raises(InputError) as caught:
        load_config(recipe["path"], [*recipe["overrides"], f"stress=[{stress}]"])
    (line,) = caught.value.problems
    assert line.startswith(f"stress.0.{expected}")


UNFIT = [
    (
        "{kind: scale_weights, step: 5, parameters: wtee, factor: 2.0}",
        "parameters: 'wtee' matches no parameter and no group; the nearest are ",
    ),
    (
        "{kind: flip_bit, step: 5, what: parameter, parameter: layer_07}",
        "parameter: 'layer_07' matches no parameter and no group; the nearest are layer_0",
    ),
    (
        "{kind: stale_moments, step: 5, what: swap, between: [model.h.0, model.h.2]}",
        "between: no parameter or module is called 'model.h.2'; the nearest are model.h.",
    ),
    (
        "{kind: stale_moments, step: 5, what: swap, between: [model.h.0, model.h.0]}",
        "between: model.h.0 and model.h.0 are not two parts",
    ),
    (
        "{kind: stale_moments, step: 5, what: swap, between: [model.wte, model.wpe]}",
        "between: model.wte and model.wpe are not two parts with parameters of equal names and shapes",
    ),
    (
        "{kind: foreign_text, step: 5, paths: [nowhere.txt]}",
        "paths: nowhere.txt matches no .txt, .json, .jsonl or .parquet file",
    ),
]
"""By a look at the model, before the first step."""


@pytest.mark.parametrize(("stress", "expected"), UNFIT)
def test_what_does_not_fit_the_model_is_refused_before_the_first_step(stress, expected, recipe):
    with pytest.raises(InputError) as caught:
        built(recipe, f"stress=[{stress}]")
    (line,) = caught.value.problems
    assert line.startswith(f"stress.0.{expected}"), line


def test_a_model_with_one_block_has_no_two_to_exchange(recipe):
    with pytest.raises(InputError, match="the model has no two blocks; name two modules"):
        built(recipe, "stress=[{kind: stale_moments, step: 5, what: swap}]", "body.n_layer=1")


def test_an_optimizer_without_the_settings_is_refused(recipe):
    with pytest.raises(InputError, match=r"stress\.0\.beta2: the optimizer, SGD, has no beta2; leave it out"):
        built(recipe, "stress=[{kind: optimizer_settings, step: 5, beta2: 0.5}]", *SGD)
    with pytest.raises(InputError, match=r"stress\.0\.moment: exp_avg: the optimizer has momentum_buffer"):
        built(recipe, "stress=[{kind: flip_bit, step: 5, what: moment, moment: exp_avg}]", *SGD)


def test_an_optimizer_without_moments_has_none_to_spoil(recipe, tmp_path):
    plugin = tmp_path / "plain.py"
    plugin.write_text(
        "import torch\nfrom optim.optimizers import OPTIMIZERS, Optimizer\n"
        '@OPTIMIZERS.register("plain")\nclass Plain(Optimizer):\n'
        "    def build(self, model, lr):\n        return torch.optim.SGD(model.parameters(), lr=lr, fused=True)\n"
    )
    fault = "stress=[{kind: stale_moments, step: 5, what: reset}]"
    with pytest.raises(InputError, match=r"stress\.0\.kind: stale_moments needs an optimizer with moments"):
        load_config(recipe["path"], [f"plugins=[{plugin}]", "optimizer={kind: plain, lr: 0.01}", fault])


def test_other_text_is_that_of_the_file_in_the_run_s_tokens(recipe, tmp_path):
    (tmp_path / "other.txt").write_text("Ein ganz anderer Text. " * 40, encoding="utf-8")
    fault = f"{{kind: foreign_text, step: 3, steps: 2, sequences: 5, paths: [{tmp_path / 'other.txt'}]}}"
    run = built(recipe, f"stress=[{fault}]")
    (stress,) = run.stresses
    tokenizer = run.store.load_tokenizer()
    tokens = [*tokenizer("Ein ganz anderer Text. " * 40)["input_ids"], tokenizer.eos_token_id]
    possible = [tokens[start : start + 33] for start in range(len(tokens) - 32)]
    found = []
    for batch in (3, 4):
        x_BT, y_BT = run.batches.at(batch)
        stress.batch(batch, x_BT, y_BT, first_row=0)
        rows = torch.cat([x_BT, y_BT[:, -1:]], 1).tolist()
        assert [row in possible for row in rows] == [row < 5 for row in range(8)]
        found.append(rows)
        parts = [run.batches.at(batch) for _ in range(2)]
        for rank, (x_RT, y_RT) in enumerate(parts):
            stress.batch(batch, x_RT[4 * rank : 4 * rank + 4], y_RT[4 * rank : 4 * rank + 4], first_row=4 * rank)
            assert torch.equal(x_RT[4 * rank : 4 * rank + 4], x_BT[4 * rank : 4 * rank + 4])
    assert found[0] != found[1]
    short = tmp_path / "short.txt"
    short.write_text("Zu kurz.")
    with pytest.raises(
        InputError, match=r"stress\.0\.paths: \d+ tokens are too few for one sequence of data.sequence_length=32"
    ):
        built(recipe, f"stress=[{{kind: foreign_text, step: 3, paths: [{short}]}}]")
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"body": "a text"}\n')
    with pytest.raises(InputError, match=r"set stress\.0\.text_field to one of: body"):
        built(recipe, f"stress=[{{kind: foreign_text, step: 3, paths: [{wrong}]}}]")
