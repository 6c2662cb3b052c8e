"""Real ranks on one machine: processes of train_lm.py that meet over gloo, each with its own output and exit status."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

LIMIT = 240
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
"""What slurm.sbatch and Accelerate's launcher set for FSDP2."""


class Ranks:
    """The processes of one launch, as a scheduler would start them: one each, with the variables that torch reads."""

    def __init__(
        self,
        recipe: dict[str, Any],
        *overrides: str,
        world_size: int = 2,
        sharded: bool = False,
        program: Sequence[object] = (),
        **environment: str,
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, *map(str, program or (ROOT / "train_lm.py",))]
        command += ["--config", str(recipe["path"]), *recipe["overrides"], *overrides]
        self.processes = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ
                | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
                | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world_size)}
                | {
                    "ACCELERATE_USE_CPU": "1",
                    "CUDA_VISIBLE_DEVICES": "",
                    "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": str(ROOT),
                }
                | (SHARDED if sharded else {})
                | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(world_size)
        ]

    def wait(self) -> list[tuple[int, str]]:
        """Exit status and stderr of each rank."""
        told = [process.communicate(timeout=LIMIT)[1] for process in self.processes]
        return [(process.returncode, text) for process, text in zip(self.processes, told, strict=True)]

    def kill(self) -> None:
        """End what is left."""
        for process in self.processes:
            process.kill()
            process.communicate()


def wait_until(condition: Callable[[], bool], ranks: Ranks) -> None:
    """Wait for something that the ranks do; fails if they end or take too long."""
    ends = time.monotonic() + LIMIT
    while not condition():
        ended = [p.returncode for p in ranks.processes if p.poll() is not None]
        assert not ended, (ended, [p.communicate()[1] for p in ranks.processes if p.poll() is not None])
        assert time.monotonic() < ends, "the ranks do not get on"
        time.sleep(0.05)


def rows_written(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0
