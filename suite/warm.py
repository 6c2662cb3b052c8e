"""Runs in processes that have imported everything already.

torch and transformers take seconds to import, which a run of half a minute should not pay. So one process, multiprocessing's
fork server, imports all that a run needs, and every run begins as a fork of it. It computes nothing: neither threads nor the
use of a GPU would survive a fork.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from common.errors import InputError, note
from common.processes import ending

from .child import Child
from .expand import SuiteRun
from .show import count

ROOT = Path(__file__).parents[1]
IGNORED = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that must not end the fork server if a scheduler sends them to all processes. (It ignores Ctrl-C too, and so do its
forks: that is for the suite, which stops them.)"""
UNREPORTED = 255
"""What multiprocessing gives for a process whose end the fork server did not report, because it was killed itself."""


def environment(threads: int | None = None) -> dict[str, str]:
    """The environment of this process and, in it, what this project's processes need. ``threads``: of each, unless the user has
    said; None leaves it to torch."""
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # The usual test for a GPU would make it unusable in forks.
    usual = {"OMP_WAIT_POLICY": "PASSIVE", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    usual |= {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return {**usual, **os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTHONUNBUFFERED": "1"}


def may_compile(recipe: Path, overrides: Sequence[str]) -> bool:
    """Whether a run seems to compile its body: only then is torch's compiler loaded beforehand, in some seconds. What the
    recipe's base says is not looked at."""
    said = list(overrides)
    with contextlib.suppress(OSError):  # told by the check
        said.append(recipe.read_text(encoding="utf-8", errors="replace"))
    return any(re.search(r"\bcompile\b[\s:=\"']+(true|yes|on)\b", text, re.IGNORECASE) for text in said)


def fork_server(threads: int | None, compiles: bool = False) -> ForkServerContext:
    """Prepare the fork server, for runs that may compile their body if ``compiles``. Changes the environment of this process,
    which it inherits: OpenMP reads it when torch is imported."""
    os.environ.update(environment(threads))
    context = ForkServerContext()
    context.set_forkserver_preload(["suite.preload", *(["suite.preload_compiler"] if compiles else [])])
    return context


class WarmChild(Child):
    """A run in a fork of the fork server. ``place``: which of those at a time it is; each has a GPU, if there are several.

    If the fork server is killed, the next run gets a new one, and this one goes on; it tells how it ended itself.
    """

    def __init__(self, context: ForkServerContext, arguments: Sequence[str], log: Path, place: int) -> None:
        super().__init__(log)
        self.end, theirs = context.Pipe(duplex=False)
        """Where the run writes its exit status; closed once it is gone."""
        self.process: BaseProcess = context.Process(target=train, args=(list(arguments), str(log), place, theirs))
        self.process.start()
        theirs.close()
        self.without_server = False

    def look(self) -> int | None:
        """From the fork server, or from the run itself."""
        reported = self.process.exitcode
        if reported != UNREPORTED:
            return reported
        if not self.without_server:
            self.without_server = True
            note(f"{self.log.stem}: the process that it is a fork of was killed; it goes on, and others get a new one")
        if not self.end.poll():
            return None
        try:
            return int(self.end.recv_bytes())
        except EOFError:  # killed, too
            return UNREPORTED

    def tell_to_stop(self) -> None:
        """By SIGUSR1, because it may have received the suite's own signal already: schedulers reach all processes."""
        if self.process.pid is not None and not self.end.poll():
            os.kill(self.process.pid, signal.SIGUSR1)


def train(arguments: list[str], log: str, place: int, end: Connection) -> None:
    """What such a process does: train_lm.py with these arguments, its output appended to ``log``, its status sent to ``end``."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)  # one that was sent since the fork ends it here
    threading.Thread(target=_stop_with_suite, daemon=True).start()
    import torch

    import train_lm

    gpu = gpu_of(place, torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # so that the log of a killed run is complete
    sys.argv = ["train_lm.py", *arguments]
    status = 1
    try:
        train_lm.run_and_exit()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
        raise
    finally:
        with contextlib.suppress(OSError):  # nobody waits for it
            end.send_bytes(str(status).encode())


def _stop_with_suite() -> None:
    """Write a checkpoint and end if the suite is killed: whoever starts it again goes on from there."""
    suite = multiprocessing.parent_process()
    assert suite is not None
    wait([suite.sentinel])
    os.kill(os.getpid(), signal.SIGUSR1)


def gpu_of(place: int, count: int, visible: str | None) -> str | None:
    """The GPU of a place, as CUDA_VISIBLE_DEVICES has it; None if there are not several to choose from."""
    if count < 2:
        return None
    names = visible.split(",") if visible else [str(number) for number in range(count)]
    return names[place % count]


def checked(context: ForkServerContext, recipe: Path, runs: Sequence[SuiteRun], out: Path) -> dict[str, Any]:
    """The answer of :func:`suite.check.check`, from a process of its own: what a recipe's plug-ins import stays out of the fork
    server. A terminal shows how far it is. Raises InputError if the process dies."""
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_check, args=(theirs, recipe, list(runs), out), daemon=True)  # ended by Ctrl-C
    process.start()
    theirs.close()
    try:
        while not isinstance(answer := json.loads(mine.recv_bytes()), dict):
            count(answer, len(runs))
    except EOFError:
        process.join()
        assert process.exitcode is not None
        raise InputError(f"the check of the configurations was {ending(process.exitcode)}") from None
    process.join()
    count(len(runs), len(runs))
    return answer


def _check(answer: Connection, recipe: Path, runs: Sequence[SuiteRun], out: Path) -> None:
    from .check import check

    overrides = {run.name: run.overrides for run in runs}
    parents = {run.name: (run.parent, run.parent_step) for run in runs if run.parent is not None}

    def send(message: object) -> None:
        answer.send_bytes(json.dumps(message).encode())

    with contextlib.suppress(BrokenPipeError):  # the suite was killed
        send(check(recipe, overrides, parents, out, send))
