from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from analysis.compare.arms import (
    Arm,
    checkpoints_up_to,
    compared_arms,
    find_arms,
    load_member,
    load_tokenizer,
    untrained_arm,
)
from common.errors import InputError
from configs.load import validate
from configs.recipe import dump_config
from model import new_model
from tests.analysis.models import make_model
from tests.analysis.text import Text
from training.build import model_config


def write_run(text: Text, folder: Path, name: str, *, seed: int, steps: tuple[int, ...] = (1,), **changes: Any) -> Path:
    """A run directory as train_lm.py leaves it; its weights are other than at initialisation."""
    body = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8}
    given = {
        "name": name,
        "seed": seed,
        "output_dir": str(folder),
        "data": {"kind": "text", "paths": ["text"], "sequence_length": 16, "vocab_size": 344},
        "body": body,
        "head": {"kind": "metric"},
        "objective": {"kind": "ce"},
        "optimizer": {"lr": 1e-3},
        "train": {"steps": 1, "batch_size": 1},
    }
    config = validate({**given, **changes})
    run = folder / name
    for step in steps:
        checkpoint = run / "checkpoints" / f"step_{step:08}"
        model = new_model(model_config(config, len(text.vocabulary), text.end_of_text), seed)
        model.lm_head.weight.data += step
        model.save_pretrained(checkpoint)
        text.tokenizer.save_pretrained(checkpoint)
    (run / "config.yaml").write_text(dump_config(config))
    return run


def seeds(arms: list[Arm]) -> list[tuple[str, tuple[int | None, ...]]]:
    return [(arm.label, arm.seeds) for arm in arms]


def test_runs_that_differ_in_the_seed_alone_are_one_arm(text: Text, tmp_path: Path) -> None:
    loss: dict[str, Any] = {"objective": {"kind": "ce", "label_smoothing": 0.1}}
    runs = [
        write_run(text, tmp_path, "ce_seed0", seed=0),
        write_run(text, tmp_path / "elsewhere", "smooth_seed0", seed=0, **loss),
        write_run(text, tmp_path / "elsewhere", "ce_seed1", seed=1, resume="never"),
        write_run(text, tmp_path, "smooth_seed1", seed=1, **loss),
        write_run(text, tmp_path, "ce_seed2", seed=2, train={"steps": 2, "batch_size": 1}),
    ]
    arms = find_arms([str(run) for run in runs])
    assert seeds(arms) == [("ce", (0, 1)), ("smooth", (0, 1)), ("ce_seed2", (2,))]
    assert [member.label for member in arms[0].members] == ["ce_seed0", "ce_seed1"]
    assert [member.run for member in arms[0].members] == [runs[0], runs[2]]
    assert arms[0].members[0].checkpoint == runs[0] / "checkpoints" / "step_00000001"


def test_what_no_training_depends_on_does_not_part_an_arm(text: Text, tmp_path: Path) -> None:
    data = {"kind": "text", "paths": ["text"], "sequence_length": 16, "vocab_size": 344}
    runs = [
        write_run(text, tmp_path, "ce_seed0", seed=0),
        write_run(text, tmp_path, "ce_seed1", seed=1, checkpoint={"keep": 7, "every": 3, "keep_before_spikes": 0}),
        write_run(text, tmp_path, "ce_seed2", seed=2, data=data | {"cache_dir": str(tmp_path / "elsewhere")}),
        write_run(text, tmp_path, "ce_seed3", seed=3, data=data | {"validation_fraction": 0.2}),
    ]
    assert seeds(find_arms([str(run) for run in runs])) == [("ce", (0, 1, 2)), ("ce_seed3", (3,))]


def test_the_baseline_is_one_arm_and_all_that_is_given_of_it(text: Text, tmp_path: Path) -> None:
    one, two = (str(write_run(text, tmp_path, f"ce_seed{seed}", seed=seed)) for seed in (0, 1))
    other = str(write_run(text, tmp_path, "linear_seed0", seed=0, head={"kind": "linear"}))
    assert seeds(compared_arms([one, two], [other])) == [("ce", (0, 1)), ("linear_seed0", (0,))]
    for baseline, candidates, words in (
        ([one, other], [two], ["--baseline names several arms (ce_seed0, linear_seed0)"]),
        ([one], [other, two], [f"--candidate: {two}", "give it with --baseline"]),
    ):
        with pytest.raises(InputError) as error:
            compared_arms(baseline, candidates)
        (problem,) = error.value.problems
        assert all(part in problem for part in words)


def test_the_checkpoints_of_a_member_end_with_its_own(text: Text, tmp_path: Path) -> None:
    run = write_run(text, tmp_path, "ce_seed0", seed=0, steps=(1, 2, 3))
    folder = run / "checkpoints"
    (folder / "step_00000001" / "model.safetensors").unlink()
    (arm,) = find_arms([str(folder / "step_00000002")])
    assert checkpoints_up_to(arm.members[0]) == [(2, folder / "step_00000002")]
    shutil.copytree(folder / "step_00000002", folder / "copy")
    (arm,) = find_arms([str(folder / "copy")])
    with pytest.raises(InputError, match="copy is not named step_<number>"):
        checkpoints_up_to(arm.members[0])


def test_the_same_seed_twice_is_two_arms_with_labels_of_their_own(text: Text, tmp_path: Path) -> None:
    runs = [
        write_run(text, tmp_path / "a", "ce", seed=0),
        write_run(text, tmp_path / "b", "ce", seed=0),
        write_run(text, tmp_path / "b", "other", seed=1),
    ]
    arms = find_arms([str(run) for run in runs])
    assert [arm.seeds for arm in arms] == [(0, 1), (0,)]
    assert len({arm.label for arm in arms}) == 2
    assert len({member.label for arm in arms for member in arm.members}) == 3


def test_a_name_that_ends_in_an_s_and_a_number_keeps_them(text: Text, tmp_path: Path) -> None:
    runs = [write_run(text, tmp_path, f"loss{seed}", seed=seed) for seed in (1, 2)]
    (arm,) = find_arms([str(run) for run in runs])
    assert arm.label == "loss1"
    runs = [write_run(text, tmp_path, f"tfsd-s{seed}", seed=seed) for seed in (1, 2)]
    (arm,) = find_arms([str(run) for run in runs])
    assert arm.label == "tfsd"


def test_checkpoints_of_different_steps_are_different_arms(text: Text, tmp_path: Path) -> None:
    run = write_run(text, tmp_path, "ce_seed0", seed=0, steps=(1, 2))
    other = write_run(text, tmp_path, "ce_seed1", seed=1, steps=(1, 2))
    first, last = (run / "checkpoints" / f"step_{step:08}" for step in (1, 2))
    arms = find_arms([str(first), str(other), str(last)])
    assert [[member.checkpoint for member in arm.members] for arm in arms] == [
        [first],
        [other / "checkpoints" / "step_00000002", last],
    ]
    assert len({arm.label for arm in arms}) == 2


def test_a_guest_is_an_arm_of_its_own_and_can_be_loaded(text: Text, tmp_path: Path) -> None:
    guest = make_model("llama", len(text.vocabulary))
    guest.save_pretrained(tmp_path / "guest")
    text.tokenizer.save_pretrained(tmp_path / "guest")
    run = write_run(text, tmp_path, "ce", seed=0)
    arms = find_arms([str(tmp_path / "guest"), str(run), str(tmp_path / "guest")])
    assert [arm.seeds for arm in arms] == [(None,), (0,), (None,)]
    assert [arm.members[0].run for arm in arms] == [None, run, None]
    assert len({arm.label for arm in arms}) == 3
    model = load_member(arms[0].members[0])
    assert not model.training
    assert model.dtype == torch.float32
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value.cpu(), guest.state_dict()[name])
    assert load_tokenizer(arms[0].members[0]).get_vocab() == text.tokenizer.get_vocab()


def test_an_untrained_arm_is_the_first_model_at_initialisation(text: Text, tmp_path: Path) -> None:
    run = write_run(text, tmp_path, "metric_seed7", seed=7)
    write_run(text, tmp_path, "metric_seed8", seed=8)
    (arm,) = find_arms([str(tmp_path / f"metric_seed{seed}") for seed in (7, 8)])
    untrained = untrained_arm(arm)
    (member,) = untrained.members
    assert (untrained.label, member.seed, member.untrained) == ("untrained", 7, True)
    before = torch.get_rng_state()
    model, trained = load_member(member), load_member(arm.members[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    config = AutoConfig.from_pretrained(run / "checkpoints" / "step_00000001")
    expected = new_model(config, seed=7).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value.cpu(), expected[name])
    assert not torch.equal(model.lm_head.weight, trained.lm_head.weight)


def test_an_untrained_arm_has_a_label_that_no_run_has(text: Text, tmp_path: Path) -> None:
    paths = [write_run(text, tmp_path, name, seed=0) for name in ("untrained", "again", "other")]
    paths[1] = paths[1].rename(tmp_path / "untrained (2)")
    arms = find_arms([str(path) for path in paths])
    assert [arm.label for arm in arms] == ["untrained", "untrained (2)", "other"]
    untrained = untrained_arm(arms[2], arms)
    assert untrained.label == untrained.members[0].label == "untrained (3)"
    assert untrained_arm(arms[2], arms[1:]).label == "untrained"


def test_an_untrained_guest_has_fresh_weights_that_are_always_the_same(text: Text, tmp_path: Path) -> None:
    make_model("gpt2", len(text.vocabulary)).save_pretrained(tmp_path / "guest")
    (arm,) = find_arms([str(tmp_path / "guest")])
    (member,) = untrained_arm(arm).members
    one, two, trained = load_member(member), load_member(member), load_member(arm.members[0])
    assert torch.equal(one.lm_head.weight, two.lm_head.weight)
    assert one.lm_head.weight.shape == trained.lm_head.weight.shape
    assert not torch.equal(one.lm_head.weight, trained.lm_head.weight)
    assert isinstance(one, type(AutoModelForCausalLM.from_config(trained.config)))


def test_everything_that_is_wrong_with_the_paths_is_said_at_once(text: Text, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    torn = write_run(text, tmp_path, "torn", seed=0)
    (torn / "config.yaml").write_text("a: [")
    listed = write_run(text, tmp_path, "listed", seed=0)
    (listed / "config.yaml").write_text("- a")
    with pytest.raises(InputError) as error:
        find_arms([str(tmp_path / "absent"), str(tmp_path / "empty"), str(torn), str(listed)])
    problems = error.value.problems
    assert ["absent" in problems[0], "empty" in problems[1]] == [True, True]
    assert problems[2].startswith(f"{torn / 'config.yaml'} is not valid YAML")
    assert problems[3].startswith(f"{listed / 'config.yaml'} holds no configuration")
    assert len(problems) == 4


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom", "gemma2", "metric"])
def test_a_guest_without_a_tokenizer_is_refused(family: str, text: Text, tmp_path: Path) -> None:
    make_model(family, len(text.vocabulary)).save_pretrained(tmp_path / "guest")
    (arm,) = find_arms([str(tmp_path / "guest")])
    with pytest.raises(InputError, match=r"guest has no tokenizer that can be loaded; save"):
        load_tokenizer(arm.members[0])


def test_checkpoints_that_cannot_be_loaded_are_named_in_one_line(text: Text, tmp_path: Path) -> None:
    make_model("gpt2", len(text.vocabulary)).save_pretrained(tmp_path / "guest")
    (arm,) = find_arms([str(tmp_path / "guest")])
    for name, spoil in (("type", spoil_type), ("weights", spoil_weights), ("shape", spoil_shape)):
        shutil.copytree(tmp_path / "guest", tmp_path / name)
        spoil(tmp_path / name)
        (arm,) = find_arms([str(tmp_path / name)])
        with pytest.raises(InputError) as error:
            load_member(arm.members[0])
        (problem,) = error.value.problems
        assert problem.startswith(f"{tmp_path / name} cannot be loaded as a causal language model: ")
        assert "\n" not in problem


def spoil_type(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"gpt2"', '"unheard_of"'))


def spoil_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def spoil_shape(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"n_embd": 16', '"n_embd": 32'))
