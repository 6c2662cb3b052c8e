"""Runs on a cluster, through submitit: an array of jobs for all runs that can start, requeued when they are preempted.

A job trains in a process of its own, which writes the same log and the same run directory as on one machine; both must be on a
disk that all nodes see.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from common.command import EXIT_PREEMPTED
from common.errors import InputError

from .child import Child
from .expand import SuiteRun
from .local import write_command
from .warm import ROOT, environment

if TYPE_CHECKING:
    from submitit import AutoExecutor, Executor, Job
    from submitit.helpers import DelayedSubmission

CLUSTERS = ("slurm", "local")
"""submitit's: ``local`` runs the same jobs on this machine, to try a suite out before it queues."""
UNBOUNDED = 1 << 20
SECONDS_BETWEEN_LOOKS = 1.0
LOST = 1
"""The return code of a job that ended without a result."""


class Training:
    """What a job does: one run. submitit sends it to the node."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self.arguments, self.log = list(arguments), log
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Train; returns the return code as :mod:`subprocess` has it."""
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(  # noqa: S603  (this project's own command)
                [sys.executable, str(ROOT / "train_lm.py"), *self.arguments],
                env=environment(),
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        signal.signal(signal.SIGINT, self._pass_on)  # how submitit's local executor cancels
        self._wait()
        return self.process.wait()

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit when the job is preempted or its time is over: the run writes a checkpoint, and goes on from there
        when the job is started again."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            self.process.send_signal(signal.SIGUSR1)
            self._wait()
        return DelayedSubmission(Training(self.arguments, self.log))

    def _wait(self) -> None:
        """Until the process has ended. Not by its own wait(), which a signal handler cannot call while it is being called."""
        assert self.process is not None
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGUSR1)


class JobChild(Child):
    """A run as a job of the cluster. One that was preempted and stopped by itself is submitted again."""

    def __init__(self, job: Job[int], training: Training, executor: Executor) -> None:
        super().__init__(training.log)
        self.job, self.training, self.executor = job, training, executor
        self.looked = 0.0

    def look(self) -> int | None:
        """Its result is a file; the queue is asked only now and then, as clusters want it."""
        if time.monotonic() - self.looked < SECONDS_BETWEEN_LOOKS:
            return None
        self.looked = time.monotonic()
        if not self.job.done(force_check=self.stopped):
            return None
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            returncode = int(self.job.result())
            if returncode == EXIT_PREEMPTED and not self.stopped:
                self.job = self.executor.submit(self.training)
                return None
            return returncode
        except (UncompletedJobError, FailedJobError) as error:
            if self.stopped:
                return EXIT_PREEMPTED
            with self.log.open("a", encoding="utf-8") as file:
                file.write(f"{error}\n")
            return LOST

    def tell_to_stop(self) -> None:
        """Take it out of the queue; if it is running, it writes a checkpoint before it ends."""
        self.job.cancel(check=False)


class Cluster:
    """All runs at a time, as far as the cluster has places; submitit's local executor starts any number of jobs at once, so that
    the suite itself keeps to ``jobs`` there."""

    def __init__(self, executor: AutoExecutor, recipe: Path, logs: Path, jobs: int | None) -> None:
        self.executor, self.recipe, self.logs = executor, recipe.resolve(), logs.resolve()
        self.places = jobs if jobs is not None and executor.cluster == "local" else UNBOUNDED

    def start(self, runs: Sequence[SuiteRun]) -> Mapping[str, Child]:
        """Submit these runs as one array."""
        trainings = []
        for run in runs:
            log, arguments = self.logs / f"{run.name}.log", ["--config", str(self.recipe), *run.overrides]
            write_command(log, ["train_lm.py", *arguments])
            trainings.append(Training(arguments, log))
        jobs = self.executor.submit_array(trainings)
        children = (JobChild(*each, self.executor) for each in zip(jobs, trainings, strict=True))
        return dict(zip((run.name for run in runs), children, strict=True))


def executor(cluster: str, folder: Path, jobs: int | None, given: Sequence[str]) -> AutoExecutor:
    """submitit's executor, with its files in ``folder``. ``jobs``: the most of an array at a time; ``given``: KEY=VALUE, as
    submitit calls them (timeout_min, cpus_per_task, gpus_per_node, slurm_partition, ...). Raises InputError."""
    try:
        import submitit
    except ImportError:
        raise InputError(
            f"--on {cluster} needs the package submitit: {sys.executable} -m pip install submitit"
        ) from None
    parameters: dict[str, Any] = {"timeout_min": 60, "slurm_job_name": folder.parent.name}
    if jobs is not None:
        parameters["slurm_array_parallelism"] = jobs
    for each in given:
        key, equals, value = each.partition("=")
        if not equals:
            raise InputError(f"--job {each}: give KEY=VALUE, as timeout_min=120 or slurm_partition=gpu")
        parameters[key] = int(value) if value.isdecimal() else value
    try:
        made = submitit.AutoExecutor(folder=folder.resolve(), cluster=cluster)
        made.update_parameters(**parameters)
    except (RuntimeError, ValueError, NameError, TypeError, AssertionError) as error:
        raise InputError(f"--on {cluster}: {' '.join(str(error).split())}") from None
    return made
