"""Starts runs in processes of their own, quickly, and breaks them where it is told to.

Importing torch and transformers takes longer than the tests' runs: this process imports them once and forks for each run. It
reads one JSON object a line, {"overrides": [...], "plan": {...}}, and answers with one: {"status": ..., "signal": ...,
"output": ..., "moments": ..., "seconds": ..., "hung": ...}. What is broken is not the project's code but what surrounds it: a
hook that Python calls at every file operation sends a real signal, or takes files away; or this process, after a time.
"""

from __future__ import annotations

import faulthandler
import glob
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE_EVENTS = (
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.chmod",
    "os.truncate",
    "shutil.rmtree",
    "mmap.__new__",
)
"""What Python tells its audit hooks about files: https://docs.python.org/3/library/audit_events.html"""

LIMIT_SECONDS = 240.0
"""A run of the tests takes two seconds, on a busy machine a few times that: one that is still there hangs."""
LAST_WORDS_SECONDS = 1.0
"""For a process that hangs to write where it is."""
WHERE_ARE_YOU = signal.SIGUSR2
"""The project has no use for this signal: Python's fault handler answers it with the stacks of all threads."""


def send(signals: Sequence[str]) -> None:
    """Send this process signals, each after the one before has been handled: two at once that nobody has looked at are one."""
    for name in signals:
        os.kill(os.getpid(), signal.Signals[name])
        time.sleep(0.05)


class Moments:
    """Counts the file operations inside a folder and acts at the one that is asked for."""

    def __init__(self, folder: str, plan: dict[str, Any]) -> None:
        self.folder, self.plan, self.count, self.busy = folder, plan, 0, False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.busy or event not in FILE_EVENTS:
            return
        inside = any(isinstance(a, (str, os.PathLike)) and str(a).startswith(self.folder) for a in arguments)
        if not inside and event != "mmap.__new__":
            return
        self.count += 1
        if self.count == self.plan.get("at"):
            self.busy = True
            send(self.plan.get("signals", ()))
            for path in self.plan.get("delete", ()):
                shutil.rmtree(path)
            self.busy = False


def run(overrides: list[str], recipe: str, folder: str, plan: dict[str, Any]) -> dict[str, Any]:
    """One run in a forked process."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as told:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            moments = Moments(folder, plan)
            faulthandler.register(WHERE_ARE_YOU, file=output.fileno(), all_threads=True)
            status = 1
            os.environ.update(plan.get("environment", {}))
            try:
                for name in plan.get("ignored", ()):
                    signal.signal(signal.Signals[name], signal.SIG_IGN)
                if "largest_file" in plan:
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (plan["largest_file"],) * 2)
                if "clock" in plan:  # every look at the calendar's clock finds another year
                    years = iter(range(10**9))
                    time.time = lambda: 1e9 + (-1) ** (n := next(years)) * 3.2e7 * n
                import train_lm
                import training.loop
                from common.command import exit_status

                sys.argv = ["train_lm.py", "--config", recipe, *overrides]
                sys.addaudithook(moments)
                if "step" in plan:
                    signal_before_step(training.loop, plan["step"], plan["signals"])
                status = exit_status(train_lm.main)
            except BaseException:
                import traceback

                traceback.print_exc()
                raise
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                told.write(str(moments.count))
                told.flush()
                os._exit(status)
        ended, seconds, hung = wait_for(child, folder, plan)
        for file in (output, told):
            file.seek(0)
        killed = os.WIFSIGNALED(ended)
        return {
            "status": None if killed else os.WEXITSTATUS(ended),
            "signal": signal.Signals(os.WTERMSIG(ended)).name if killed else None,
            "output": output.read(),
            "moments": int(told.read() or 0),
            "seconds": seconds,
            "hung": hung,
        }


def signal_before_step(loop: Any, step: int, signals: list[str]) -> None:
    """Have the process send itself ``signals`` just before it takes ``step`` for the first time."""
    usual, sent = loop.training_step, False

    def training_step(run: Any, number: int) -> None:
        nonlocal sent
        if number == step and not sent:
            sent = True
            send(signals)
        usual(run, number)

    loop.training_step = training_step


def wait_for(child: int, folder: str, plan: dict[str, Any]) -> tuple[int, float, bool]:
    """Wait status of a child, how long it lived in seconds, and whether it was ended for being there for too long."""
    began = time.monotonic()
    handle = os.pidfd_open(child)
    try:
        if "kill_after" in plan and still_there(handle, folder, plan["kill_after"], plan.get("kill_at_file")):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        hung = not has_ended(handle, plan.get("limit", LIMIT_SECONDS))
        if hung:
            signal.pidfd_send_signal(handle, WHERE_ARE_YOU)
            signal.pidfd_send_signal(handle, signal.SIGCONT)  # a stopped process answers nothing else
            has_ended(handle, LAST_WORDS_SECONDS)
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        return os.waitpid(child, 0)[1], time.monotonic() - began, hung
    finally:
        os.close(handle)


def still_there(handle: int, folder: str, seconds: float, pattern: str | None) -> bool:
    """Wait so long, then until there is a file of that pattern in the folder; whether the process has not ended by then."""
    if has_ended(handle, seconds):
        return False
    # pathlib's glob fails where folders come and go
    while pattern is not None and not glob.glob(str(Path(folder) / pattern)):  # noqa: PTH207
        if has_ended(handle, 0.0):
            return False
    return True


def has_ended(handle: int, seconds: float) -> bool:
    """Whether the process of a handle ends within so many seconds."""
    return bool(select.select([handle], [], [], seconds)[0])


def serve() -> None:
    """Answer one request after the other until the input ends."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    import training.run  # noqa: F401 - the imports that take long

    # Under `make test &` in a script it is ignored, and would be in the runs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
