"""Configurations that are wrong in every way: each ends with status 2, told in lines that name the key, and starts nothing.

Every example goes through the function that the command runs, in this process; a few go through a process of their own.
"""

import contextlib
import copy
import io
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import train_lm
from common.command import exit_status
from configs.load import load_config
from tests.conftest import ROOT, called

BASE: dict[str, Any] = {
    "name": "fuzzed",
    "seed": 1,
    "resume": "auto",
    "data": {"kind": "grammar", "documents": 10, "sequence_length": 8, "validation_fraction": 0.1},
    "body": {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "resid_pdrop": 0.0},
    "head": {"kind": "metric", "scale": 2.0, "tied": True},
    "objective": {"kind": "tfsd"},
    "optimizer": {
        **{
            "lr": 1e-3,
            "warmup_steps": 1,
            "beta1": 0.9,
            "beta2": 0.95,
            "eps": 1e-8,
            "weight_decay": 0.1,
            "clip_norm": 1.0,
        },
        "schedule": {"kind": "cosine", "min_ratio": 0.1},
    },
    "train": {"steps": 5, "batch_size": 2, "eval_every": 2, "eval_sequences": 2, "precision": "fp32", "compile": False},
    "checkpoint": {"every": 2, "keep": 1, "keep_before_spikes": 1},
    "telemetry": {"enabled": True, "flush_every": 2, "attention_every": 2, "attention_sequences": 1},
    "detection": {"detector": "median_mad", "signals": ["loss/nll"]},
    "stress": [{"kind": "corrupt_sequences", "step": 2, "steps": 1, "sequences": 1, "pattern": "random"}],
    "interventions": [{"kind": "rewind", "signal": "loss/nll", "min_sigmas": 9.0, "margin": 1, "most": 1}],
    "trackers": [],
    "plugins": [],
}
"""A recipe that is valid, and says most keys."""


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in ``tree`` that are not sections."""
    if not isinstance(tree, dict | list) or not tree:
        return [path]
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return [leaf for key, value in items for leaf in leaves(value, (*path, key))]


def value_at(tree: Any, path: tuple[Any, ...]) -> Any:
    """The value of ``tree`` there."""
    for key in path:
        tree = tree[key]
    return tree


def changed(*changes: tuple[tuple[Any, ...], Any]) -> dict[str, Any]:
    """BASE with other values at these paths."""
    recipe = copy.deepcopy(BASE)
    for path, value in changes:
        value_at(recipe, path[:-1])[path[-1]] = value
    return recipe


LEAVES = leaves(BASE)
COUNTS = [path for path in LEAVES if type(value_at(BASE, path)) is int and path != ("seed",)]
NUMBERS = [path for path in LEAVES if type(value_at(BASE, path)) in (int, float) and path != ("head", "scale")]
NOTHING_IS = [b"bytes", {"a": {"b": 1}}, [[1]], [{}], {"kind": [1]}, [None, "x"]]
"""Values that no key that holds one value takes."""

fuzzed = settings(
    max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def refused(folder: Path, recipe: Any, *overrides: str) -> list[str]:
    """What the command says of a recipe (a dictionary, text or bytes), which it must refuse without a trace of a run."""
    text = recipe if isinstance(recipe, str | bytes) else yaml.safe_dump(recipe, sort_keys=False)
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    places = [f"output_dir={folder}/runs", f"data.cache_dir={folder}/cache"]
    said = io.StringIO()
    command = ["train_lm.py", "--config", str(path), *places, *overrides]
    with patch.object(sys, "argv", command), contextlib.redirect_stderr(said):
        status = exit_status(train_lm.main)
    told = said.getvalue().splitlines()
    assert status == 2, told
    assert all(line.isprintable() for line in told)
    lines = [line for line in told if not line.startswith("note: ")]
    assert lines
    for line in lines:
        # A key with its value's trouble, or the file with the place in it.
        assert re.match(rf"error: (--config {re.escape(str(folder))}\S*: |overrides |\S[^:=]*[:=])", line), line
    assert sorted(entry.name for entry in folder.iterdir()) == ["recipe.yaml"], "something was written"
    return lines


def names(lines: list[str], path: tuple[Any, ...]) -> bool:
    """Whether a line is about the key, or about its section with the key in its words."""
    key = ".".join(map(str, path))
    section = str(path[0])
    return any(
        line.startswith((f"error: {key}:", f"error: {key}.")) or (line.startswith(f"error: {section}") and str(path[-1]) in line)
        for line in lines
    )  # fmt: skip


def test_the_recipe_that_is_made_wrong_is_right(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(BASE))
    assert load_config(tmp_path / "recipe.yaml").name == "fuzzed"


@fuzzed
@given(
    path=st.sampled_from([p for p in LEAVES if value_at(BASE, p) not in ([], {})]), value=st.sampled_from(NOTHING_IS)
)
def test_a_value_of_a_wrong_type_is_told_by_its_key(tmp_path, path, value):
    assert names(refused(tmp_path, changed((path, value))), path)


@fuzzed
@given(path=st.sampled_from(NUMBERS), value=st.sampled_from(["", "x", "nan", "many", True, float("nan"), float("inf")]))
def test_what_is_no_number_is_told_by_its_key(tmp_path, path, value):
    assert names(refused(tmp_path, changed((path, value))), path)


@fuzzed
@given(
    path=st.sampled_from(COUNTS),
    value=st.one_of(st.integers(max_value=-1), st.integers(min_value=1 << 41), st.just(10**400), st.just(10**4000)),
)
@example(path=("body", "n_layer"), value=10**9)
@example(path=("body", "n_head"), value=-2)
@example(path=("body", "n_embd"), value=2**63)
@example(path=("train", "batch_size"), value=1 << 21)
def test_an_absurd_size_is_told_by_its_key(tmp_path, path, value):
    assert names(refused(tmp_path, changed((path, value))), path)


words = st.text(
    st.characters(codec="utf-8", exclude_characters=".:=", exclude_categories=("C", "Z")), min_size=1, max_size=20
)


@fuzzed
@given(
    section=st.sampled_from([p[:-1] for p in LEAVES if p[-1] != 0]),
    word=words,
    value=st.sampled_from([1, "x", None, [], {}]),
)
def test_an_unknown_key_is_told_by_its_name(tmp_path, section, word, value):
    key = (*section, f"zz{word}")
    lines = refused(tmp_path, changed((key, value)))
    assert any(".".join(map(str, key)) in line for line in lines), lines


CONTRADICTIONS = [
    (["optimizer.warmup_steps=5"], "optimizer.warmup_steps"),
    (["train.batch_size=1048576", "data.sequence_length=1048576"], "train.batch_size"),
    (["data.vocab_size=500"], "data.vocab_size"),
    (["data.kind=text"], "data.paths"),
    (["data.kind=text", "data.paths=[x]", "data.vocab_size=500", "data.tokenizer=gpt2"], "tokenizer"),
    (["data.kind=hub", "data.paths=[x]"], "data.paths"),
    (["data.skip_steps=[[3,2]]"], "data.skip_steps"),
    (["body.n_head=3"], "body.n_embd"),
    (["body.n_positions=4"], "data.sequence_length"),
    (["body.vocab_size=9"], "body.vocab_size"),
    (["body.model_type=vit"], "body.model_type"),
    (["body.model_type=swap_head"], "body.model_type"),
    (["head.kind=linear", "head.scale=1"], "head.scale"),
    (["objective.label_smoothing=0.1"], "objective.label_smoothing"),
    (["optimizer.schedule={kind: constant, min_ratio: 0.1}"], "optimizer.schedule.min_ratio"),
    (["train.precision=fp16"], "interventions"),
    (["detection.signals=[grad_norm/total]"], "interventions.0.signal"),
    (["detection.signals=[tokens/s]"], "detection.signals"),
    (["stress=[{kind: scale_lr, step: 6, factor: 2.0}]"], "stress.0.step"),
    (["stress=[{kind: scale_lr, step: 2, sequences: 1}]"], "stress.0.sequences"),
    (["stress=[{kind: corrupt_sequences, step: 2, sequences: 3, pattern: random}]"], "stress.0.sequences"),
    (["name=../escaped"], "name"),
    (["name=/tmp"], "name"),
    (["data=[]"], "data"),
    (["data.paths.0=x"], "data.paths"),
    (["train.1=2"], "train.1"),
    (["head.kind=[1]"], "head.kind"),
    (["head.kind={a: 1}"], "head.kind"),
    (["trackers=[nowhere]"], "trackers"),
    ([".a=1"], ".a=1"),
    (["train..steps=1"], "train..steps"),
]


@fuzzed
@given(
    chosen=st.lists(st.sampled_from(CONTRADICTIONS), min_size=1, max_size=3, unique_by=lambda c: c[1].partition(".")[0])
)
def test_contradictions_are_told_by_a_key(tmp_path, chosen):
    lines = refused(tmp_path, BASE, *(override for overrides, _ in chosen for override in overrides))
    assert any(key in line for _, key in chosen for line in lines), lines


@pytest.mark.parametrize(("overrides", "key"), CONTRADICTIONS, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_each_contradiction_is_told_by_its_key(tmp_path, overrides, key):
    assert any(key in line for line in refused(tmp_path, BASE, *overrides))


ONE_NAME = st.text("abcdefgh-_ é", min_size=1, max_size=300).map(lambda text: f"zz{text}")
MISSING = {
    "base": lambda name: {"base": f"{name}.yaml", **BASE},
    "plugins": lambda name: {**BASE, "plugins": [f"{name}.py"]},
    "data.paths": lambda name: changed(
        (("data",), {"kind": "text", "paths": [name], "vocab_size": 300, "sequence_length": 8})
    ),
    "data.tokenizer": lambda name: changed(
        (
            ("data",),
            {"kind": "text", "paths": [str(ROOT / "requirements.txt")], "tokenizer": f"./{name}", "sequence_length": 8},
        )
    ),
}


@fuzzed
@given(key=st.sampled_from(sorted(MISSING)), name=ONE_NAME)
@example(key="data.paths", name="~zznobody")
@example(key="data.paths", name="**/zz*")
@example(key="base", name="zz\0")
@example(key="plugins", name="zz\0")
@example(key="data.tokenizer", name="zz\0")
def test_a_missing_file_is_told_by_the_key_that_names_it(tmp_path, key, name):
    lines = refused(tmp_path, MISSING[key](name))
    assert any(key in line for line in lines), lines


TAGS = [
    "!!python/object/apply:os.system ['touch {mark}']",
    "!!python/object/apply:subprocess.check_output [[touch, '{mark}']]",
    "!!python/object/new:os.system ['touch {mark}']",
    "!!python/object/new:type {{args: ['x', [], {{}}], state: {{a: 1}}}}",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/tuple [1, 2]",
    "!!python/object:pathlib.Path {{}}",
    "!something else",
]


@fuzzed
@given(path=st.sampled_from([p for p in LEAVES if len(p) > 1]), tag=st.sampled_from(TAGS))
def test_a_yaml_tag_is_refused_with_its_line_and_does_nothing(tmp_path, path, tag):
    text = yaml.safe_dump(changed((path, "TAG")), sort_keys=False)
    number = next(n for n, line in enumerate(text.splitlines(), 1) if "TAG" in line)
    lines = refused(tmp_path, text.replace("TAG", tag.format(mark=tmp_path / "mark")))
    assert any(f"line {number}, column" in line for line in lines), lines


@fuzzed
@given(data=st.data())
def test_a_damaged_recipe_is_told_by_its_file_or_a_missing_key(tmp_path, data):
    text = yaml.safe_dump(BASE, sort_keys=False).encode()
    end = data.draw(st.integers(0, text.index(b"\ntrain:")))
    junk = data.draw(st.binary(max_size=20).filter(lambda b: b"#" not in b))
    lines = refused(tmp_path, text[:end] + junk)
    assert any("train" in line or str(tmp_path / "recipe.yaml") in line for line in lines), lines


_ALIASES = (f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefgh"))
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(_ALIASES)
"""Nine to the power of eight values in a few lines."""
NESTED = [
    "x: " + "[" * 5000 + "]" * 5000,
    "x: " + "{a: " * 2000 + "1" + "}" * 2000,
    BOMB,
    "seed: " + "9" * 5000,
    "? {a: b}\n: 2",
    "null: 1",
    "!!binary aGVsbG8=: 2",
    "name: ${oc.env:NOT_SET_ANYWHERE}",
    "a: ${b}\nb: ${a}",
    "---\nname: second",
]


@pytest.mark.parametrize("text", NESTED, ids=range(len(NESTED)))
def test_a_recipe_that_would_break_its_reader_is_one_line(tmp_path, text):
    lines = refused(tmp_path, text)
    assert "x" not in text or lines[0].startswith("error: --config")


@pytest.mark.parametrize("path", ["", ".", "/dev/null", "zz" * 3000, "nowhere.yaml", "\0"])
def test_a_path_that_is_no_recipe_is_one_line(tmp_path, path):
    said = io.StringIO()
    with patch.object(sys, "argv", ["train_lm.py", "--config", path]), contextlib.redirect_stderr(said):
        assert exit_status(train_lm.main) == 2
    assert all(line.startswith("error: ") for line in said.getvalue().splitlines())


BAD_PATH = (("data",), {"kind": "text", "paths": ["zz\x1b[31m"], "vocab_size": 300, "sequence_length": 8})
"""A path that would colour a terminal."""


@pytest.mark.parametrize(
    "changes",
    [[(("train", "steps"), b"bytes")], [(("body", "n_layer"), 10**9), (("train", "zz"), 1)], [BAD_PATH]],
    ids=["bytes", "absurd and unknown", "a path that colours terminals"],
)
def test_each_mistake_is_one_line(tmp_path, changes):
    assert len(refused(tmp_path, changed(*changes))) == len(changes)


def test_the_command_ends_with_status_2_one_line_each_and_no_files(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(changed(BAD_PATH)))
    done = called(train_lm.main, "--config", "recipe.yaml", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.isprintable()
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.yaml"]
