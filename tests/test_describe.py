"""What tells people and editors about the configuration: it is generated, it is whole, and it agrees with what is checked."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml

import configs.list
from common.command import exit_status
from configs.describe import attribute_docs, keys_of, reference
from configs.kinds import TABLES
from configs.load import load_config
from configs.messages import sections
from configs.schema import RunConfig

from .conftest import ROOT, called, python
from .test_plugins import PLUGINS

RECIPES = sorted([*ROOT.glob("configs/*.yaml"), *ROOT.glob("configs/scale/*.yaml")])
SCHEMA = json.loads((ROOT / "configs" / "schema.json").read_text(encoding="utf-8"))


BOTH = """
import runpy
for name in ("configs.describe", "configs.schema"):
    runpy.run_module(name, run_name="__main__", alter_sys=True)
    print(end="\\0")
"""
"""The two generators as ``python -m`` starts them."""


def problems(recipe):
    return list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(recipe))


def test_what_is_committed_is_what_is_generated():
    both = python("-W", "ignore::RuntimeWarning", "-c", BOTH)  # in a process without other tests' plug-ins
    generated, _, schema = both.stdout.partition("\0")
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == generated
    assert json.loads(schema.removesuffix("\0")) == SCHEMA


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_names_the_schema_and_fits_it(path):
    first, *_ = path.read_text(encoding="utf-8").splitlines()
    named = path.parent / first.removeprefix("# yaml-language-server: $schema=")
    assert named.resolve() == ROOT / "configs" / "schema.json"
    assert not problems(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": {"lrr": 1}},
        {"data": {"kind": "pydoc", "paths": ["x"]}},
        {"head": {"kind": "metric", "scale": "artcle"}},
        {"stress": [{"kind": "scale_lr", "step": 0, "factor": 2.0}]},
        {"optimizer": {"schedule": {"kind": "cosine", "decay_fraction": 0.1}}},
        {"train": {"steps": "many"}},
        {"stress": [{}]},
        {"stress": [{"kind": "scale_lr", "step": 3}]},
        {"stpes": 3},
    ],
)
def test_an_editor_finds_the_mistake(recipe):
    assert problems(recipe)


def test_a_kind_of_a_plug_in_is_no_mistake():
    assert not problems({"stress": [{"kind": "earthquake", "step": 5, "richter": 7}], "base": "pydoc_micro.yaml"})


def test_a_checked_configuration_fits_the_schema():
    for path in RECIPES:
        if path.stem not in ("prose",):  # its texts are the user's
            assert not problems(load_config(path).model_dump(mode="json")), path


def test_every_key_is_there_and_has_a_meaning():
    text = reference()
    for prefix, cls in sections():
        for key in keys_of(cls):
            assert key.meaning or key.name == "kind", (prefix, key)
            assert f"`{prefix}{key.name}`" in text or key.name == "kind"
    for section, kinds in TABLES.items():
        for kind, cls in kinds.items():
            if not (ROOT / f"{cls.__module__.replace('.', '/')}.py").exists() or cls.__module__.startswith("tests"):
                continue  # a plug-in of another test in this process
            assert f"{section}.kind: {kind}" in text or section == "detection.detector"
            assert all(key.meaning for key in keys_of(cls.Options)), kind


def test_attribute_docs_are_those_below_the_attribute():
    said = attribute_docs(RunConfig)
    assert said["seed"].startswith("Seed of every random stream")
    assert said["data"] == "", "nothing is below it"
    assert "model_fields_set" not in said


def test_another_broken_pipe_is_not_passed_over():
    def body():
        raise BrokenPipeError("a tracker's socket")

    with pytest.raises(BrokenPipeError, match="socket"):
        exit_status(body)


def test_the_list_has_the_kinds_of_plug_ins():
    listed = called(configs.list.main, "interventions", "--plugins", PLUGINS / "clip_to_usual.py", "stress")
    assert listed.returncode == 0, listed.stderr
    lines = [line.split() for line in listed.stdout.splitlines()]
    assert ["factor", "float;", "2.0"] in lines
    assert {"clip_norm", "rewind", "clip_to_usual", "scale_lr"} <= {line[0] for line in lines}
    mistaken = called(configs.list.main, "heads")
    assert mistaken.returncode == 2
    assert "did you mean head?" in mistaken.stderr
