"""A command imports only what it uses, and does not look for garbage in it."""

import gc
import re

import pytest

from common.imports import importing

from .conftest import ROOT, python

MICRO = ROOT / "configs" / "pydoc_micro.yaml"
LIBRARIES = {"torch", "transformers", "accelerate", "datasets", "pyarrow", "pandas", "matplotlib", "scipy", "sklearn"}
"""Each takes from a third of a second to three seconds."""
NOT_FOR_A_RUN = {
    *("datasets", "pyarrow", "pandas", "matplotlib", "sklearn"),
    *("tensorboard", "torch.utils.tensorboard", "wandb", "torch._inductor.compile_fx"),
}


def imported_by(*command):
    """The modules that a command imports."""
    finished = python("-v", *command)  # not -X importtime, which is silent about importlib.import_module
    assert finished.returncode == 0, finished.stderr[-2000:]
    return set(re.findall(r"^import '(\S+)' #", finished.stderr, re.MULTILINE))


def test_a_run_imports_no_library_that_only_other_runs_need(recipe):
    short = ["train.steps=2", "optimizer.warmup_steps=1", "checkpoint.every=2"]
    loaded = imported_by("train_lm.py", "--config", recipe["path"], *recipe["overrides"], *short)
    assert {"torch", "transformers.modeling_utils", "training.run"} <= loaded
    assert not NOT_FOR_A_RUN & loaded


def test_printing_a_configuration_imports_what_checks_it_and_no_more():
    loaded = imported_by("train_lm.py", "--config", MICRO, "--print-config")
    assert "configs.kinds" in loaded
    assert not (NOT_FOR_A_RUN | {"training.run", "ranks.launch", "data.store"}) & loaded


@pytest.mark.parametrize(
    ("command", "needs"),
    [
        (["run_suite.py", "--help"], set()),
        (["train_lm.py", "--help"], set()),
        (["-m", "analysis.curves", "--help"], {"pandas", "pyarrow"}),
        (["-m", "analysis.summary", "--help"], {"pandas", "pyarrow"}),
    ],
    ids=lambda value: value[-2] if isinstance(value, list) else "",
)
def test_a_command_without_a_model_imports_no_torch(command, needs):
    assert LIBRARIES & imported_by(*command) <= needs


def test_the_collector_stays_off_what_a_configuration_imported_and_works_again():
    finished = python(
        "-c",
        f"""
import gc
from configs.load import load_config
load_config({str(MICRO)!r})
print(gc.isenabled(), gc.get_freeze_count() > 200_000)
count = gc.get_freeze_count()
load_config({str(MICRO)!r})
print(gc.isenabled(), gc.get_freeze_count() <= count)
""",
    )
    assert finished.stdout.split() == ["True"] * 4, finished.stderr


def test_the_collector_stays_off_what_the_command_itself_imports():
    finished = python("-c", "import gc, train_lm; print(gc.isenabled(), gc.get_freeze_count() > 50_000)")
    assert finished.stdout.split() == ["True", "True"], finished.stderr


@pytest.mark.parametrize("enabled", [True, False])
def test_a_block_that_imports_nothing_leaves_the_collector_as_it_was(enabled):
    frozen, before = gc.get_freeze_count(), gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ValueError, match="inside"), importing():
            assert not gc.isenabled()
            raise ValueError("inside")
        assert gc.isenabled() is enabled
        assert gc.get_freeze_count() <= frozen
    finally:
        (gc.enable if before else gc.disable)()
