"""The launch files: the SLURM script with real processes under stand-ins for srun and scontrol, and the Accelerate files."""

import os
import re
import subprocess
import sys

import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from tests.conftest import ROOT, rows_of

LAUNCH = ROOT / "configs/launch"
SCRIPT = LAUNCH / "slurm.sbatch"
# What SLURM does with a script's step: SLURM_NTASKS processes, each told its place; the highest of their statuses comes back.
SRUN = """#!/bin/bash
echo "srun $*" >> "$CALLS"
while [[ $1 == --* ]]; do shift; done
for ((i = 0; i < SLURM_NTASKS; i++)); do
    SLURM_PROCID=$i SLURM_LOCALID=$i "$@" &
    processes+=($!)
done
highest=0
for process in "${processes[@]}"; do
    wait "$process"
    status=$?
    ((status > highest)) && highest=$status
done
exit "$highest"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$CALLS"
[[ $1 == show ]] && printf '127.0.0.1\\nelsewhere\\n'
exit 0
"""
# Stands where Python would: says how it was started, and returns the status of its rank.
TRAIN = """#!/bin/bash
echo "$RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT ${ACCELERATE_USE_FSDP:-ddp} $*" >> "$STARTED"
statuses=($STATUSES)
exit "${statuses[$RANK]}"
"""


@pytest.fixture
def submit(tmp_path):
    """Run the script as SLURM would run it on one node with two tasks; returns the process and the calls it made."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("train", TRAIN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(*arguments, **environment):
        (tmp_path / "calls").unlink(missing_ok=True)
        slurm = {"SLURM_JOB_ID": "71234", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS": "2"}
        slurm |= {"SLURM_NTASKS_PER_NODE": "2"}
        paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
        done = subprocess.run(
            ["bash", SCRIPT, *map(str, arguments)],
            env=os.environ | slurm | paths | {"STARTED": str(tmp_path / "started")} | environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        return done, (tmp_path / "calls").read_text().splitlines()

    return run


def launched_environment(name):
    """What ``accelerate launch`` with this file tells the processes that it starts."""
    arguments = ["--config_file", str(LAUNCH / name), "--machine_rank", "0", "--main_process_ip", "host", "train_lm.py"]
    checked, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    return prepare_multi_gpu_env(checked)


def directives():
    return set(re.findall(r"^#SBATCH (\S+)$", SCRIPT.read_text(), re.MULTILINE))


def test_two_ranks_run_to_the_end_under_the_slurm_script(submit, recipe, tmp_path):
    done, calls = submit(
        *("--config", recipe["path"], *recipe["overrides"], "name=slurm", "train.steps=12"),
        PYTHON=sys.executable,
        ACCELERATE_USE_CPU="1",
    )
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows_of(tmp_path / "slurm")] == list(range(1, 13))
    environment = yaml.safe_load((tmp_path / "slurm" / "environment.json").read_text())
    assert environment["world_size"] == 2
    assert not any("requeue" in call for call in calls)


@pytest.mark.parametrize(
    ("statuses", "returned", "requeued"),
    [("75 75", 75, True), ("0 0", 0, False), ("2 2", 2, False), ("3 3", 3, False), ("75 143", 143, False)],
)
def test_only_a_run_that_was_preempted_is_requeued_and_its_status_is_the_jobs(submit, statuses, returned, requeued):
    done, calls = submit("--config", "x.yaml", PYTHON="train", STATUSES=statuses)
    assert done.returncode == returned
    assert calls.count("scontrol requeue Incomplete 71234") == requeued
    assert sum("requeue" in call for call in calls) == requeued


def test_each_process_is_told_its_place_and_gets_the_arguments_as_they_are(submit, tmp_path):
    submit("--config", "a b.yaml", "data.paths=[x, y]", PYTHON="train", STATUSES="0 0")
    places = sorted((tmp_path / "started").read_text().splitlines())
    arguments = "train_lm.py --config a b.yaml data.paths=[x, y]"
    assert places == [f"{rank} 2 {rank} 2 127.0.0.1 21234 ddp {arguments}" for rank in (0, 1)]


def test_a_signal_to_a_process_of_srun_reaches_the_program_and_no_shell_around_it(submit, tmp_path):
    (tmp_path / "train").write_text(
        '#!/bin/bash\ntrap "exit 75" USR1\ntouch "$STARTED"\nfor _ in {1..300}; do sleep 0.1; done\n'
    )
    (tmp_path / "srun").write_text(
        '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nSLURM_PROCID=0 SLURM_LOCALID=0 "$@" &\n'
        "until [[ -e $STARTED ]]; do sleep 0.1; done\nkill -USR1 $!\nwait $!\n"
    )
    done, calls = submit("--config", "x.yaml", PYTHON="train")
    assert done.returncode == 75, done.stderr
    assert "scontrol requeue Incomplete 71234" in calls


def test_the_scheduler_is_asked_to_warn_the_processes_to_requeue_and_to_keep_the_log():
    assert {"--signal=USR1@120", "--requeue", "--open-mode=append"} <= directives()


def test_ranks_that_return_are_not_taken_for_a_reason_to_kill_the_others(submit):
    _, calls = submit("--config", "x.yaml", PYTHON="train", STATUSES="75 75")
    (step,) = [call for call in calls if call.startswith("srun ")]
    assert "--kill-on-bad-exit=0" in step.split()


def test_the_slurm_script_shards_as_the_accelerate_file_does(submit, tmp_path):
    """What the script exports for FSDP is what ``accelerate launch`` would have set, and nothing of the file is left out."""
    (tmp_path / "train").write_text('#!/bin/bash\nenv > "$STARTED"\n')
    submit("--config", "x.yaml", PYTHON="train", SHARDED="1")
    told = dict(line.partition("=")[::2] for line in (tmp_path / "started").read_text().splitlines() if "=" in line)
    exported = {key: value for key, value in told.items() if "FSDP" in key}
    launched = launched_environment("nodes_2_fsdp2.yaml")
    assert exported == {key: launched[key] for key in exported}
    file = yaml.safe_load((LAUNCH / "nodes_2_fsdp2.yaml").read_text())
    assert {key.upper() for key in file["fsdp_config"]} | {"ACCELERATE_USE_FSDP"} == exported.keys()


def test_the_files_for_two_nodes_differ_in_sharding_alone():
    ddp, sharded = (yaml.safe_load((LAUNCH / name).read_text()) for name in ("nodes_2.yaml", "nodes_2_fsdp2.yaml"))
    assert {key for key in ddp.keys() | sharded.keys() if ddp.get(key) != sharded.get(key)} == {
        "distributed_type",
        "fsdp_config",
    }
    eight = yaml.safe_load((LAUNCH / "gpus_8_fsdp2.yaml").read_text())
    assert sharded["fsdp_config"] == eight["fsdp_config"]
