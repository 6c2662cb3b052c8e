from pathlib import Path

import pytest
import torch

from benchmarks.reproduce.a21_transplant import HEADS, judged, train_arms
from benchmarks.reproduce.base import Verdict
from benchmarks.reproduce.train import RECIPE, train_runs
from benchmarks.reproduce.transplant import transplant
from common.errors import InputError
from model import load_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("text")
    text = folder / "text.txt"
    text.write_text("\n\n".join(f"Sentence {i} of a text that says {i * i} things." for i in range(400)))
    data = f'data={{"kind": "text", "paths": ["{text}"], "cache_dir": "{folder}", "vocab_size": 300, "sequence_length": 16}}'
    return [
        data,
        "data.validation_fraction=0.1",
        *HEADS,
        "train.batch_size=2",
        "optimizer.warmup_steps=1",
        "train.eval_sequences=2",
    ]


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("arms")
    return out, train_arms(3, tiny, out, branch=3, last=6)


def test_only_the_normalisation_is_new(trained):
    out, _ = trained
    old, new = (load_model(out / name / "checkpoints" / "step_00000003") for name in ("parent", "operated"))
    ids = torch.randint(0, 300, (2, 16), generator=torch.Generator().manual_seed(0))
    assert not torch.equal(old(ids).logits, new(ids).logits)
    for layer in new.model.layers:
        for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
            assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        layer.self_attn.q_norm, layer.self_attn.k_norm = torch.nn.Identity(), torch.nn.Identity()
    assert torch.equal(old(ids).logits, new(ids).logits)


def test_all_branches_meet_the_same_first_batch_and_only_the_operated_one_another_loss(trained):
    _, measured = trained
    first = {arm: losses[0] for arm, losses in measured["losses"].items()}
    assert first["untouched"] == first["rewarmed"] != first["transplanted"]
    assert all(len(losses) == 3 for losses in measured["losses"].values())


def test_the_operated_run_goes_on_with_gains_that_are_trained(trained):
    out, _ = trained
    end = load_model(out / "transplanted" / "checkpoints" / "step_00000006")
    assert any((layer.self_attn.q_norm.weight != 1).any() for layer in end.model.layers)


def test_another_body_and_a_missing_checkpoint_are_refused(tiny, tmp_path):
    with pytest.raises(InputError, match="no checkpoint of step 9"):
        train_runs({"parent": [*tiny, "train.steps=2"]}, RECIPE, tmp_path)
        transplant(tmp_path / "parent", 9, tmp_path / "place")
    train_runs({"other": [*tiny, "train.steps=2", "body.model_type=qwen3", "body.head_dim=32"]}, RECIPE, tmp_path)
    with pytest.raises(InputError, match="only a plain body of model_type llama"):
        transplant(tmp_path / "other", 2, tmp_path / "place")


def made(step, gain, gain_rewarmed=None, fall=0.1):
    found = []
    for seed in range(3):
        end = 6.0 + gain + 0.01 * seed
        again = 6.0 + gain - (gain if gain_rewarmed is None else gain_rewarmed)
        validation = {"untouched": 6.0, "rewarmed": again, "transplanted": end}
        untouched = [6.0] * 20 + [6.0 - fall] * 20
        losses = {
            "untouched": untouched,
            "rewarmed": untouched,
            "transplanted": [6.0 + step + 0.01 * seed, *[end] * 39],
        }
        found.append({"losses": losses, "validation": validation})
    return judged(found)


def test_a_step_up_and_a_lower_end_are_reproduced():
    assert made(step=0.3, gain=-0.5).verdict is Verdict.REPRODUCED


@pytest.mark.parametrize(
    "change",
    [{"step": -0.2, "gain": -0.5}, {"step": 0.3, "gain": 0.1}, {"step": 0.3, "gain": -0.5, "gain_rewarmed": 0.2}],
)
def test_no_step_no_gain_or_a_gain_that_warming_up_gives_too_are_not(change):
    assert made(**change).verdict is Verdict.NOT_REPRODUCED


def test_a_run_that_had_not_stalled_has_nothing_to_be_cured_of():
    assert made(step=0.3, gain=-0.5, fall=0.7).verdict is Verdict.NOT_AT_THIS_SCALE
