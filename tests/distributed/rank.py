"""One rank in a process that is forked: this module is what the server of the forks imports, once for all of them.

Importing torch, transformers and the project takes several times as long as the tests' runs, and each rank would do it again.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import training.run  # noqa: F401 - the imports that take long

ROOT = Path(__file__).parents[2]


def train(command: Sequence[str], environment: Mapping[str, str], stdout: Path, stderr: Path) -> None:
    """Become the process of ``python COMMAND...`` in the project's folder, with this environment and these outputs."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    for number in (
        signal.SIGTERM,
        signal.SIGUSR1,
    ):  # which a suite's fork server, if that was the first, ignores and blocks
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    sys.argv = [*command]
    sys.path.insert(0, str(ROOT))
    runpy.run_path(command[0], run_name="__main__")
