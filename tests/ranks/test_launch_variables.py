"""What the variables of a launch may say, and the one line that each of the others gets."""

import os
import subprocess
import sys

import pytest
from accelerate.state import AcceleratorState

import train_lm
from ranks.launch_variables import launch_problems
from tests.conftest import ROOT, called, python

TOGETHER = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
SUPPORTED = {
    "nothing": {},
    "torchrun": {**TOGETHER, "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"},
    "accelerate launch": {
        **{"ACCELERATE_USE_CPU": "True", "ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_MIXED_PRECISION": "no"},
        **{"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "ACCELERATE_CPU_AFFINITY": "false"},
    },
    "FSDP2": {**TOGETHER, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "false"},
    "offloading for somebody else's FSDP": {"FSDP_OFFLOAD_PARAMS": "true"},
    "a rank left over from another program": {"RANK": "0"},
    "no rank": {"LOCAL_RANK": "-1"},
    "one process on each of two machines, on their CPUs": {
        **{"ACCELERATE_USE_CPU": "1", "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "first"},
    },
    "a quiet Accelerate": {"ACCELERATE_LOG_LEVEL": "error"},
}
REFUSED = [
    ({"ACCELERATE_DYNAMO_BACKEND": "EAGER"}, "ACCELERATE_DYNAMO_BACKEND=EAGER: Accelerate would compile the model"),
    ({"ACCELERATE_DYNAMO_BACKEND": "BOGUS"}, "ACCELERATE_DYNAMO_BACKEND=BOGUS"),
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported"),
    ({"ACCELERATE_USE_MEGATRON_LM": "1"}, "Megatron-LM is not supported"),
    ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "a parallelism_config is not supported"),
    ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "gradients are accumulated by train.micro_batch_size"),
    ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto"}, "gradients are accumulated by train.micro_batch_size"),
    ({"ACCELERATE_LOG_LEVEL": "bogus"}, "ACCELERATE_LOG_LEVEL=bogus: no logging level; choose one of critical"),
    ({"ACCELERATE_LOG_LEVEL": "20"}, "ACCELERATE_LOG_LEVEL=20: no logging level"),
    ({"ACCELERATE_USE_CPU": "maybe"}, "ACCELERATE_USE_CPU=maybe: must be true or false"),
    ({"ACCELERATE_USE_CPU": ""}, "ACCELERATE_USE_CPU=: must be true or false"),
    ({"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"}, "set fsdp_offload_params: false"),
    ({"ACCELERATE_USE_FSDP": "true", "FSDP_IGNORED_MODULES": "wte"}, "remove fsdp_ignored_modules"),
    ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK=0, WORLD_SIZE=2, but LOCAL_RANK and MASTER_ADDR and MASTER_PORT not set"),
    ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0, but RANK and WORLD_SIZE and MASTER_ADDR and MASTER_PORT not set"),
    ({**TOGETHER, "MASTER_ADDR": ""}, "but MASTER_ADDR not set"),
    ({**TOGETHER, "LOCAL_RANK": "a"}, "LOCAL_RANK=a: must be a whole number"),
    ({**TOGETHER, "LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0: must be at least 1"),
    ({**TOGETHER, "ACCELERATE_USE_FSDP": "1"}, "ACCELERATE_USE_FSDP=1: write true"),
    ({**TOGETHER, "RANK": "2"}, "RANK=2 is not among the ranks 0 to WORLD_SIZE - 1 = 1"),
    ({**TOGETHER, "MASTER_PORT": "70000"}, "MASTER_PORT=70000 is no port"),
]


@pytest.mark.parametrize("environment", SUPPORTED.values(), ids=SUPPORTED)
def test_a_usual_launch_has_no_problem(environment):
    assert launch_problems(environment) == []


@pytest.mark.parametrize(("environment", "expected"), REFUSED, ids=lambda v: "" if isinstance(v, str) else str(v)[-60:])
def test_what_is_not_supported_is_one_line_that_names_the_variable(environment, expected):
    (problem,) = launch_problems(environment)
    assert expected in problem


def test_all_problems_are_told_at_once():
    assert len(launch_problems({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_LOG_LEVEL": "x", "RANK": "y"})) == 3


@pytest.mark.parametrize(
    ("start", "environment", "expected"),
    [
        (
            "process",
            {"ACCELERATE_LOG_LEVEL": "bogus"},
            "ACCELERATE_LOG_LEVEL=bogus: no logging level",
        ),  # read at import
        ("here", {"ACCELERATE_TORCH_DEVICE": "bogus"}, "ACCELERATE_TORCH_DEVICE=bogus cannot be used here"),
    ],
)
def test_a_run_refuses_it_before_it_writes(start, environment, expected, recipe, tmp_path, monkeypatch):
    command = ["--config", recipe["path"], *recipe["overrides"]]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    AcceleratorState._reset_state(reset_partial_state=True)
    ended = called(train_lm.main, *command) if start == "here" else python("train_lm.py", *command)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"error: launch: {expected}")
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "tiny").exists()


def test_dynamo_in_accelerates_default_configuration_is_refused(recipe, tmp_path):
    """What ``accelerate config`` writes for whoever answers yes to torch dynamo."""
    folder = tmp_path / "home" / "accelerate"
    folder.mkdir(parents=True)
    (folder / "default_config.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nuse_cpu: true\nmixed_precision: 'no'\n"
        "num_machines: 1\nnum_processes: 1\ndynamo_config: {dynamo_backend: EAGER}\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "train_lm.py", "--config", recipe["path"]]
        + recipe["overrides"],
        cwd=ROOT,
        env=os.environ | {"HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 1  # accelerate's own, whatever the status
    assert "error: launch: ACCELERATE_DYNAMO_BACKEND=EAGER: Accelerate would compile the model" in ended.stderr
    assert not (tmp_path / "tiny").exists()
