"""Real ranks on one machine: processes of train_lm.py that meet over gloo, each with its own output and exit status.

They are forked from a server that has imported what takes long (rank.py); ranks that a launcher starts from nothing are in
test_two_ranks.py and test_launch_files.py.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.distributed.rank import train

LIMIT = 240
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([train.__module__])
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
"""What slurm.sbatch and Accelerate's launcher set for FSDP2."""


class Rank:
    """A process of a launch, with the outputs and the exit status of its own that a process of subprocess has."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._outputs = tempfile.TemporaryDirectory()
        self._said, self._told = (Path(self._outputs.name, name) for name in ("stdout", "stderr"))
        process = FORKS.Process(target=train, args=(command, environment, self._said, self._told))
        process.start()
        self._process = process

    @property
    def returncode(self) -> int | None:
        """Its exit status, or the negative number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def communicate(self, timeout: float = LIMIT) -> tuple[str, str]:
        """What it wrote, once it has ended."""
        self._process.join(timeout)
        assert self.returncode is not None, f"a rank is still there after {timeout} seconds"
        said, told = (path.read_text() if path.exists() else "" for path in (self._said, self._told))
        return said, told

    def send_signal(self, number: int) -> None:
        if self.returncode is None and self._process.pid:
            os.kill(self._process.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def places(world_size: int) -> list[dict[str, str]]:
    """What a launcher tells each of its processes, in the variables that torch reads."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    shared |= {"LOCAL_WORLD_SIZE": str(world_size), "ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": ""}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"} for rank in range(world_size)]


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
        command = [*map(str, program or (ROOT / "train_lm.py",)), "--config", str(recipe["path"])]
        self.processes = [
            Rank(
                [*command, *recipe["overrides"], *overrides],
                os.environ | place | (SHARDED if sharded else {}) | environment,
            )
            for place in places(world_size)
        ]

    def wait(self) -> list[tuple[int, str]]:
        """Exit status and stderr of each rank."""
        told = [process.communicate()[1] for process in self.processes]
        return [(process.returncode or 0, text) for process, text in zip(self.processes, told, strict=True)]

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
