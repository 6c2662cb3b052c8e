"""Starts runs in processes of their own, quickly, and breaks them where it is told to.

Importing torch and transformers takes longer than the tests' runs: this process imports them once and forks for each run. It
reads one JSON object a line, {"overrides": [...], "plan": {...}}, and answers with one: {"status": ..., "signal": ...,
"stderr": ..., "moments": ...}. What is broken is not the project's code but what surrounds it: a hook that Python calls at
every file operation sends a real signal, or takes files away.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
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
            for name in self.plan.get("signals", ()):
                os.kill(os.getpid(), signal.Signals[name])
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
            status = 1
            try:
                if "largest_file" in plan:
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (plan["largest_file"],) * 2)
                if "clock" in plan:  # every look at the calendar's clock finds another year
                    years = iter(range(10**9))
                    time.time = lambda: 1e9 + (-1) ** (n := next(years)) * 3.2e7 * n
                import train_lm
                from configs.errors import exit_status

                sys.argv = ["train_lm.py", "--config", recipe, *overrides]
                sys.addaudithook(moments)
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
        _, ended = os.waitpid(child, 0)
        for file in (output, told):
            file.seek(0)
        killed = os.WIFSIGNALED(ended)
        return {
            "status": None if killed else os.WEXITSTATUS(ended),
            "signal": signal.Signals(os.WTERMSIG(ended)).name if killed else None,
            "output": output.read(),
            "moments": int(told.read() or 0),
        }


def serve() -> None:
    """Answer one request after the other until the input ends."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    import training.run  # noqa: F401 - the imports that take long

    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
