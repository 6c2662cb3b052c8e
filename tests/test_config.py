"""Recipes, overrides, and mistakes in them."""

import itertools
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import train_lm
from common.command import exit_status
from common.errors import InputError
from configs.load import load_config, load_recorded, validate
from configs.recipe import dump_config
from configs.schema import BodyConfig
from training.build import model_config
from training.resume import ResumePoint, find_resume_point

from .conftest import ROOT, python

RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
MICRO = ROOT / "configs" / "pydoc_micro.yaml"


def problems(*overrides, recipe=MICRO):
    with pytest.raises(InputError) as caught:
        load_config(recipe, overrides)
    assert all("\n" not in line for line in caught.value.problems)
    return list(caught.value.problems)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_is_valid_and_survives_its_own_dump(recipe, tmp_path):
    config = load_config(recipe)
    assert config.name == recipe.stem
    (tmp_path / "dumped.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "dumped.yaml") == config


def test_a_recipe_on_top_of_another_states_only_what_differs():
    article, base = load_config(ROOT / "configs/pydoc_micro_article.yaml"), load_config(MICRO)
    assert article.head.options["scale"] == "article"
    assert article.model_copy(update={"name": base.name, "head": base.head}) == base


def test_a_vocabulary_is_padded_for_the_body_and_not_for_the_head():
    config = load_config(MICRO, ["body.pad_vocab_to_multiple_of=64"])
    found = model_config(config, vocab_size=4100, special_id=0)
    assert (found.text_config.vocab_size, found.n_classes) == (4160, 4100)
    with pytest.raises(ValueError, match="pad_vocab_to_multiple_of is for a new body"):
        BodyConfig.model_validate({"checkpoint": "x", "pad_vocab_to_multiple_of": 64})


def test_numbers_in_yaml_and_on_the_command_line_are_numbers():
    assert load_config(MICRO, ["optimizer.lr=1e-3"]).optimizer.lr == 1e-3
    assert load_config(MICRO, ["head.scale=2"]).head.options["scale"] == 2


def test_tfsd_on_a_head_without_a_bound_is_remarked_on(capsys):
    load_config(MICRO)
    assert not capsys.readouterr().err
    load_config(MICRO, ["head.kind=linear"])
    assert "objective.kind=tfsd: the weight c is negative where a true logit is above 0" in capsys.readouterr().err


def test_an_override_reaches_into_a_list():
    fault = ROOT / "configs/pydoc_fault.yaml"
    was, changed = load_config(fault), load_config(fault, ["stress.0.step=26", "stress.0.sequences=2"])
    assert changed.stress[0].options == was.stress[0].options | {"step": 26, "sequences": 2}
    with pytest.raises(InputError, match=r"stress\.1: the last entry is stress\.0; to add one"):
        load_config(fault, ["stress.1.step=26"])
    with pytest.raises(InputError) as caught:
        load_config(fault, ["stress.0.step=3", "stress.1.step=26", "optimizer.lrr=3"])
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["stress.1", "optimizer.lrr"]
    whole = "stress=[{kind: scale_lr, step: 3, factor: 2.0}]"
    assert load_config(fault, [whole, "stress.0.step=4"]).stress[0].options["step"] == 4
    with pytest.raises(InputError, match=r"stress\.1: the last entry is stress\.0"):
        load_config(fault, [whole, "stress.1.step=26"])
    with pytest.raises(InputError, match=r"stress: input should be a list, but is \{\}"):
        load_config(fault, ["stress={}"])


def test_another_kind_in_a_list_leaves_the_old_options_behind(capsys):
    fault = ROOT / "configs/pydoc_fault.yaml"
    changed = load_config(fault, ["stress.0.kind=scale_lr", "stress.0.step=5", "stress.0.factor=3.0"])
    assert changed.stress[0].options == {"step": 5, "steps": 1, "factor": 3.0}
    assert (
        "stress.0.kind=scale_lr: the recipe's other values are left out (pattern, sequences)" in capsys.readouterr().err
    )


def test_a_recorded_configuration_that_no_longer_fits_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text(dump_config(load_config(MICRO)).replace("kind: metric", "kind: gone"))
    with pytest.raises(InputError, match=r"config\.yaml: head\.kind: unknown kind 'gone'"):
        load_recorded(tmp_path)


def test_another_kind_drops_the_options_it_does_not_have():
    config = load_config(ROOT / "configs/pydoc_micro_article.yaml", ["head.kind=linear"])
    assert config.head.model_dump() == {
        "kind": "linear",
        "tied": True,
        "bias": False,
        "multiplier": 1.0,
        "soft_cap": None,
    }


MISTAKES = [
    (["stress=3"], "stress: input should be a list, but is 3; write stress=[{kind: ...}, ...]"),
    (["negatives={kind: random, share: 0.25}"], "negatives.loss: is required and has no default"),
    (
        ["negatives={kind: random, share: 0.25, loss: hinge}"],
        "negatives: loss=hinge needs a margin; set negatives.margin",
    ),
    (
        ["negatives={kind: random, share: 0.25, loss: uniform, margin: 2.0}"],
        "negatives: margin has no effect with loss=uniform; leave it out",
    ),
    (
        ["negatives={kind: random, share: 0.25, loss: others, nearest: 4}", "head.abstain=true"],
        "negatives: nearest has no effect with loss=others; leave it out",
    ),
    (
        ["negatives={kind: corpus, share: 0.25, loss: uniform}"],
        "negatives: kind=corpus needs a text; set negatives.paths",
    ),
    (
        ["negatives={kind: random, share: 0.25, loss: uniform, paths: [x]}"],
        "negatives: paths has no effect with kind=random; leave it out",
    ),
    (
        ["negatives={kind: random, share: 0.01, loss: uniform}"],
        "negatives.share: 0.01 of train.batch_size=16 sequences is none; choose another share or a larger batch",
    ),
    (
        ["negatives={kind: random, share: 0.25, loss: hinge, margin: 2.0}", "head.kind=linear"],
        "negatives.loss: hinge: head.kind=linear has no distances to its classes; use head.kind=metric or",
    ),
    (
        ["negatives={kind: random, share: 0.25, loss: others}"],
        "negatives.loss: others: the head has no class besides the vocabulary's; set head.kind=metric head.abstain=true",
    ),
    (
        ["checkpoint.unknown_fpr=0.1", "head.kind=linear"],
        "checkpoint.unknown_fpr: head.kind=linear has no distances to its classes; use head.kind=metric or leave it out",
    ),
    (["stress.0.step=3"], 'stress: input should be a list, but is {"0": {"step": 3}}; write stress=[{kind: ...}, ...]'),
    (["data=3"], "data: input should be a mapping of keys, but is 3"),
    (["data.skip_steps=[[3,2]]"], "data.skip_steps.0: a range of steps is [first, last]"),
    (
        ["stress=[{kind: scale_lr, step: 501, factor: 2.0}]"],
        "stress.0.step: 501 comes after the last step, train.steps=500",
    ),
    (["stress=[{kind: scale_lr, stp: 5, factor: 2.0}]"], "stress.0.stp: unknown key; did you mean stress.0.step?"),
    (
        ["stress=[{kind: scale_lr, step: 5, multiplier: 2.0}]"],
        "stress.0.multiplier: unknown key; stress.0.kind=scale_lr has step, steps, factor",
    ),
    (
        ["interventions=[{kind: centre_embeddings, xyz: 2.0}]"],
        "interventions.0.xyz: unknown key; interventions.0.kind=centre_embeddings has no options",
    ),
    (
        ["stress=[{kind: scale_lr, step: 5, sequences: 2}]"],
        "stress.0.sequences: has no effect with stress.0.kind=scale_lr",
    ),
    (
        ["stress=[{kind: earthquake, step: 5}]"],
        "stress.0.kind: unknown kind 'earthquake'; registered: corrupt_sequences, dead_rank, flip_bit, foreign_text, "
        "gradient_noise, half_parameters, label_noise, optimizer_settings, scale_lr, scale_weights, short_sequences, "
        "small_batch, stale_moments; one of your own needs its file in plugins",
    ),
    (
        ["stress=[{kind: corrupt_sequences, step: 5, sequences: 17, pattern: random}]"],
        "stress.0.sequences: 17 is more than train.batch_size=16",
    ),
    (["interventions=[{kind: rewind, signal: logit/max}]"], "logit/max is not among detection.signals"),
    (["detection.detector=median_max"], "did you mean median_mad?"),
    (
        ["telemetry.families=[norms]", "detection.signals=[logit/max]"],
        "detection.signals: logit/max is not measured without logits in telemetry.families",
    ),
    (["telemetry.families=[]"], "telemetry.families: "),
    (["detection.signals=[loss/nl]"], "detection.signals: no metric 'loss/nl'"),
    (["optimizer.lrr=1"], "optimizer.lrr: unknown key; did you mean optimizer.lr?"),
    (["train.lr=1"], "train.lr: unknown key; did you mean optimizer.lr?"),
    (["out=runs/mine"], "out: unknown key; did you mean output_dir?"),
    (["learning_rate=0.1"], "learning_rate: unknown key; did you mean optimizer.lr?"),
    (["train.learning_rate=0.1"], "train.learning_rate: unknown key; did you mean optimizer.lr?"),
    (["train.steps=many"], 'train.steps: input should be a valid integer, but is "many"'),
    (["train.steps=true"], "train.steps: input should be a valid integer, but is true"),
    (['train.steps="5"'], "leave the quotes out"),
    (['train.compile="true"'], "leave the quotes out"),
    (['head.scale="0.5"'], "leave the quotes out"),
    (["train.steps=1e3"], "but is 1000.0; write 1000"),
    (["data.tokenizer=123"], '\'data.tokenizer="123"\' on the command line, tokenizer: "123" in a recipe'),
    (["detection.detector=off"], "YAML reads true, yes, on, false, no and off as truth values"),
    (["trackers=[1]"], '\'trackers=["1"]\' on the command line, - "1" in a recipe'),
    (["output_dir=[v1]"], "'output_dir=\"...\"' on the command line"),
    (["output_dir=a: b"], "YAML reads { } and a colon as a mapping; in quotes it is text"),
    (
        ["data.paths=[*.txt]"],
        "if it is text, put it in quotes: 'data.paths=\"...\"', or 'data.paths=[\"...\"]' in a list",
    ),
    (["name="], "name: input should be a valid string, but is null; an empty value is null, too"),
    (["train.steps=0"], "train.steps: input should be greater than or equal to 1, but is 0"),
    (["optimizer.lr=.nan"], "optimizer.lr: input should be a finite number, but is NaN"),
    (["optimizer.warmup_steps=9999"], "optimizer.warmup_steps (9999) must be smaller than train.steps"),
    (
        ["head.kind=metrc"],
        "registered: cosine, dual, harmonic, linear, metric, mixture, von_mises_fisher; did you mean metric?",
    ),
    (["head.scale=-1"], "head: scale must be from 1e-06 to 1e+06, not -1.0"),
    (["head.scale=1e308"], "head: scale must be from 1e-06 to 1e+06, not 1e+308"),
    (["head.scale=0"], "head: scale must be from 1e-06 to 1e+06, not 0"),
    (["head.scale=1e-7"], "head: scale must be from 1e-06 to 1e+06, not 1e-07"),
    (["head.scael=1"], "head.scael: no option of the kind metric"),
    (["head.kind=linear", "head.scale=1"], "head.scale: no option of the kind linear, it has tied, bias"),
    (["objective.label_smoothing=0.1"], "objective.label_smoothing: no option of the kind tfsd, it has no options"),
    (["data.paths=[x]"], "data.paths: has no effect with data.kind=pydoc"),
    (["data.kind=text"], "data.paths: is required and has no default"),
    (
        ["data.kind=texts"],
        "data.kind: unknown kind 'texts'; registered: grammar, hub, pydoc, text, tokens; did you mean text?",
    ),
    (["data.tokenizer=gpt2"], "data: give exactly one of vocab_size"),
    (["body.n_layers=2"], "body.n_layers: no field of a gpt2 configuration; did you mean n_layer?"),
    (["body.n_layer=two"], "body: transformers cannot build this gpt2"),
    (["body.n_layer=0"], "body: this configuration has no transformer block"),
    (["body.n_head=3"], "body: transformers cannot build this gpt2"),
    (["body.vocab_size=9"], "body.vocab_size: follows from the data"),
    (["body.model_type=gpt22"], "body.model_type: transformers knows no model type 'gpt22'; did you mean gpt2?"),
    (["body.hidden_size=64", "body.n_embd=64"], "body.n_embd: body.hidden_size is the same field; leave one out"),
    (
        ["body.model_type=llama"],
        "body.intermediate_size: is required; transformers' default for llama, 11008, is that of",
    ),
    (["body.model_type=qwen3"], "body.head_dim: is required; transformers' default for qwen3, 128"),
    (["body.model_type=qwen3"], "body.num_key_value_heads: is required; transformers' default for qwen3, 32"),
    (["body.model_type=opt"], "body.ffn_dim: is required; transformers' default for opt, 3072"),
    (["body.model_type=mixtral"], "body.num_local_experts: is required; transformers' default for mixtral, 8"),
    (["body.n_positions=64"], "data.sequence_length: 128 is more than the body's 64 positions"),
    (["name=../elsewhere"], "name: string should match pattern"),
    (["steps"], "steps: an override has the form key.sub=value"),
    (["plugins=[nowhere.py]"], "plugins: nowhere.py: no such file"),
]


@pytest.mark.parametrize(("overrides", "expected"), MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_a_mistake_is_one_line_that_names_the_key(overrides, expected):
    assert any(expected in line for line in problems(*overrides)), problems(*overrides)


def test_a_name_of_digits_can_be_given_as_the_mistake_says(tmp_path):
    (told,) = problems("name=123")
    advice = re.search(r"is text: (.*) on the command line, (.*) in a recipe", told)
    assert advice, told
    after_the_shell = subprocess.run(
        ["sh", "-c", f"printf %s {advice[1]}"], capture_output=True, text=True, check=True, timeout=60
    )
    assert load_config(MICRO, [after_the_shell.stdout]).name == "123"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base: {MICRO}\n{advice[2]}\noptimizer:\n  lr: 1e-3\n")  # a string to PyYAML
    config = load_config(recipe)
    assert (config.name, config.optimizer.lr) == ("123", 1e-3)


def test_all_mistakes_are_told_at_once():
    assert len(problems("optimizer.lrr=1", "train.steps=many", "data.paths=[x]", "foo=1")) == 4
    assert len(problems("optimizer.lr=-1", "optimizer.beta1=1.5")) == 2
    assert len(problems("optimizer.schedule={kind: cosine, min_ratio: 2}", "train.steps=-1")) == 2


def test_a_section_without_a_kind_has_no_kind_of_another_section():
    raw = load_config(MICRO).model_dump(mode="json") | {"data": {"sequence_length": 1}}
    with pytest.raises(InputError) as caught:
        validate(raw)
    assert [line.partition(":")[0] for line in caught.value.problems] == ["data.kind", "data.sequence_length"]
    assert "adamw" not in str(caught.value)


def test_an_override_that_cannot_be_read_hides_no_other_mistake():
    told = problems("optimizer.lr=[1", "train.steps=many", "steps", "body.n_layers=2", "name={x")
    starts = [
        "optimizer.lr=[1: not valid YAML",
        "steps: an override has",
        "name={x: not valid YAML",
        "body.n_layers",
        "train.steps",
    ]
    assert len(told) == len(starts)
    for start in starts:
        assert any(line.startswith(start) for line in told), told
    told = problems("data.documents=[", recipe=Path("nowhere.yaml"))
    assert [line.partition(": ")[0] for line in told] == ["data.documents=[", "--config nowhere.yaml"]


@pytest.mark.parametrize("override", ["head.kind=[", "plugins=[", "data={kind: [", "body.model_type=["])
def test_nothing_is_said_of_keys_whose_kind_cannot_be_read(override):
    (told,) = problems(override, "head.tied=x", "data.paths=[x]")
    assert told.startswith(f"{override}: not valid YAML")


def test_nothing_is_said_of_a_value_that_cannot_be_read(tmp_path):
    (tmp_path / "r.yaml").write_text(f"base: {MICRO.resolve()}\ntrain: {{steps: many}}\n")
    (told,) = problems("train.steps=[1", recipe=tmp_path / "r.yaml")
    assert told.startswith("train.steps=[1: not valid YAML")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [", "not a valid YAML recipe"),
        ("- a\n- b\n", "holds a list, not a mapping"),
        ("name: !!python/object/apply:os.system ['true']\n", "not a valid YAML recipe"),
        ("base: self.yaml\n", "leads back to itself"),
        ("name: x\n", "data: is required"),
        ("name: ${nowhere}\n", "not a valid YAML recipe"),
    ],
)
def test_broken_recipe_files(text, expected, tmp_path):
    (tmp_path / "self.yaml").write_text(text)
    assert any(expected in line for line in problems(recipe=tmp_path / "self.yaml"))


def test_a_missing_recipe():
    assert problems(recipe=Path("nowhere.yaml")) == ["--config nowhere.yaml: no such file"]


LEAVES = [
    *(
        "seed",
        "resume",
        "name",
        "data.kind",
        "data.sequence_length",
        "body.n_embd",
        "head.kind",
        "head.scale",
        "objective.kind",
    ),
    *(
        "optimizer.lr",
        "optimizer.schedule",
        "train.batch_size",
        "train.precision",
        "checkpoint.keep",
        "trackers",
        "data.new",
    ),
]
VALUES = [None, -1, 0, 1.5, 10**30, "", "x", "ce", [], [1], {}, {"kind": "ce"}, True]


@given(st.dictionaries(st.sampled_from(LEAVES), st.sampled_from(VALUES), min_size=1, max_size=4))
def test_any_configuration_is_either_valid_or_explained(changes):
    raw = yaml.safe_load(MICRO.read_text())
    for key, value in changes.items():
        *path, leaf = key.split(".")
        section = raw
        for part in path:
            section = section.get(part) if isinstance(section.get(part), dict) else section.setdefault(part + "_", {})
        section[leaf] = value
    try:
        validate(raw)
    except InputError as error:
        assert error.problems
        assert all(line and "\n" not in line for line in error.problems)


def test_a_mistake_in_a_real_process_has_status_2_and_no_traceback_and_writes_nothing(tmp_path):
    result = python(
        ROOT / "train_lm.py",
        "--config",
        MICRO,
        "optimizer.lrr=1",
        "head.kind=nothing",
        f"output_dir={tmp_path}/runs",
        cwd=tmp_path,
    )
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "error: optimizer.lrr: unknown key; did you mean optimizer.lr?",
        "error: head.kind: unknown kind 'nothing'; registered: cosine, dual, harmonic, linear, metric, mixture, von_mises_fisher"
        "; one of your own needs its file in plugins",
    ]
    assert list(tmp_path.iterdir()) == []


def command_line(monkeypatch, *overrides):
    """Status of train_lm.py on MICRO with these arguments, in this process."""
    monkeypatch.setattr("sys.argv", ["train_lm.py", "--config", str(MICRO), *overrides])
    return exit_status(train_lm.main)


def test_a_checkpoint_that_is_not_there_is_told_before_any_text_is_read(tmp_path, monkeypatch, capsys):
    places = [f"output_dir={tmp_path}/runs", f"data.cache_dir={tmp_path}/cache"]
    assert command_line(monkeypatch, "body.checkpoint=/nope", *places) == 2
    assert capsys.readouterr().err == "error: body.checkpoint: /nope: no such folder\n"
    assert list(tmp_path.iterdir()) == []


def test_print_config_prints_what_would_run(tmp_path, monkeypatch, capsys):
    assert command_line(monkeypatch, "seed=7", "--print-config") == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert load_config(tmp_path / "printed.yaml") == load_config(MICRO, ["seed=7"])


def test_readme_keys_exist():
    """Keys that README and docs name in overrides are keys of the schema."""
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")))
    found = set(re.findall(r"\b((?:data|train|optimizer|checkpoint|telemetry)\.[a-z_]+)=", text))
    known = set(itertools.chain(*(_keys(load_config(r).model_dump()) for r in RECIPES)))
    assert found <= known | {"data.paths", "data.tokenizer"}


def _keys(tree, prefix=""):
    for key, value in tree.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def test_another_body_keeps_the_fields_that_it_has_under_its_own_names(capsys):
    """gpt2's n_embd is llama's hidden_size; of what llama has not, each field is named."""
    config = load_config(MICRO, ["body.model_type=llama", "body.intermediate_size=384"])
    assert config.body.fields == {
        **{"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 128, "intermediate_size": 384},
    }
    told = capsys.readouterr().err
    assert told == (
        "note: body.model_type=llama has no activation_function, resid_pdrop, embd_pdrop, attn_pdrop; "
        "the recipe's values are left out\n"
    )


def test_a_llama_recipe_that_becomes_a_qwen3_stays_as_small_as_it_was(tmp_path, capsys):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    recipe = tmp_path / "llama.yaml"
    body = {
        "model_type": "llama",
        **sizes,
        "intermediate_size": 96,
        "rms_norm_eps": 1e-5,
        "pad_vocab_to_multiple_of": 64,
        "sigma_reparam": True,
    }
    recipe.write_text(yaml.safe_dump({**yaml.safe_load(MICRO.read_text()), "body": body}))
    config = load_config(recipe, ["body.model_type=qwen3", "body.head_dim=32"])
    assert config.body.fields == {**sizes, "intermediate_size": 96, "rms_norm_eps": 1e-5, "head_dim": 32}
    assert (config.body.pad_vocab_to_multiple_of, config.body.sigma_reparam) == (64, True)
    on_top = tmp_path / "qwen3.yaml"
    on_top.write_text("base: llama.yaml\nbody: {model_type: qwen3, head_dim: 32}\n")
    assert load_config(on_top) == config
    assert capsys.readouterr().err == ""


def test_an_older_run_whose_sizes_transformers_filled_in_is_still_read_and_gone_on_with(tmp_path):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    run = tmp_path / "old"
    run.mkdir()
    raw = yaml.safe_load(MICRO.read_text())
    body = {"model_type": "qwen3", **sizes, "intermediate_size": 96}
    (run / "config.yaml").write_text(yaml.safe_dump({**raw, "body": body}))
    (run / "status.json").write_text('{"status": "running"}')
    with pytest.raises(InputError, match=r"body\.head_dim: is required"):
        load_config(run / "config.yaml")
    assert load_recorded(run).body.fields == {**sizes, "intermediate_size": 96}
    now = load_config(MICRO, [f"output_dir={tmp_path}", "name=old", f"body={json.dumps({**body, 'head_dim': 128})}"])
    again = now.model_copy(update={"name": raw["name"]})
    assert find_resume_point(again, run) == ResumePoint()
    with pytest.raises(InputError, match=r"body.head_dim: the run in .* was begun with 128, not 64"):
        find_resume_point(load_config(MICRO, ["name=pydoc_micro", f"body={json.dumps({**body, 'head_dim': 64})}"]), run)


def test_a_field_stated_under_its_common_name_replaces_the_recipes(capsys):
    fields = load_config(MICRO, ["body.hidden_size=64"]).body.fields
    assert fields["hidden_size"] == 64
    assert "n_embd" not in fields
    assert problems("body.model_type=lama") == [  # and nothing of what such a body would not have
        "body.model_type: transformers knows no model type 'lama'; did you mean llama?"
    ]
    assert capsys.readouterr().err == ""
    config = load_config(MICRO, ["body.model_type=gpt_neox", "body.hidden_size=64", "body.intermediate_size=96"])
    assert config.body.fields["hidden_size"] == 64
    back = load_config(MICRO, ["body.model_type=gptj", "body.hidden_size=64", "body.rotary_dim=8"])
    assert "n_embd" not in back.body.fields
    assert (back.body.fields["hidden_size"], back.body.fields["n_layer"]) == (64, 4)


def test_a_recipe_may_have_another_kind_than_its_base(tmp_path, capsys):
    recipe = tmp_path / "own.yaml"
    (tmp_path / "heads.py").write_text(
        "from model import LinearHead, register_head\n@register_head('own_linear')\nclass Own(LinearHead): ..."
    )
    sections = (
        "data: {kind: tokens, paths: [a.bin], tokenizer: gpt2}\nhead: {kind: own_linear}\nobjective: {kind: ce}\n"
    )
    recipe.write_text(f"base: {MICRO}\n{sections}plugins: [{tmp_path}/heads.py]\n")
    config = load_config(recipe)
    assert (config.data.kind, config.head.kind, config.data.sequence_length) == ("tokens", "own_linear", 128)
    assert "data.kind=tokens has no vocab_size; the recipe's values are left out" in capsys.readouterr().err


def test_options_that_another_head_has_not_are_named(tmp_path, capsys):
    recipe = tmp_path / "article.yaml"
    recipe.write_text(f"base: {MICRO}\nhead: {{kind: metric, scale: article, tied: true}}\n")
    assert load_config(recipe, ["head.kind=linear", "objective.kind=ce"]).head.options["tied"] is True
    assert capsys.readouterr().err == "note: head.kind=linear has no scale; the recipe's values are left out\n"
