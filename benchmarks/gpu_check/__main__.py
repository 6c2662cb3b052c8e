"""Everything that only a GPU can show, in one command: tests of correctness, then tables of speed and memory.

    python -m benchmarks.gpu_check --out DIR [--device cuda|cpu] [--minutes M] [--wheels FOLDER]

Writes DIR/gpu_check.json and DIR/gpu_check.md, anew every few seconds while it runs, beside the parts' own figures and output.
One GPU is used, the first that is visible. A part that fails or runs out of time is named and does not end the others.
--device cpu runs all of it on tiny sizes, to try the command itself. Exit status 1: something failed or was left out.
"""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from common.command import ArgumentParser, exit_status
from common.errors import InputError

from .packages import WHEELS, missing, unpack
from .parts import PARTS, ROOT, run_part
from .report import JSON_NAME, MARKDOWN_NAME, Report, lines_in, write_report

LEAST_MINUTES = 0.5
LOG_NAME = "output.log"
FOREIGN = (
    *("ACCELERATE_", "FSDP_", "TRITON_INTERPRET", "PYTEST_ADDOPTS"),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)
"""How variables begin that would change what is checked: a launch that the shell is part of, an interpreted kernel."""


def main() -> int:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(description="Tests and benchmarks on one GPU, in a given time.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results; emptied of an earlier check's")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny sizes")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything")
    parser.add_argument("--wheels", type=Path, default=WHEELS, help="where packages that are missing here may be")
    arguments = parser.parse_args()
    if not LEAST_MINUTES <= arguments.minutes < float("inf"):
        raise InputError(f"--minutes: must be at least {LEAST_MINUTES}, but is {arguments.minutes}")
    deadline = time.monotonic() + 60 * arguments.minutes
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as after Ctrl-C, the running part is ended too
    _empty(arguments.out)
    date = datetime.datetime.now().astimezone().isoformat(timespec="minutes")
    report = Report(date, _commit(), arguments.device, arguments.minutes)
    with tempfile.TemporaryDirectory() as folder:
        report.missing_packages = absent = missing()
        if absent and arguments.wheels.is_dir():
            report.missing_packages = unpack(absent, arguments.wheels, Path(folder))
        check(report, arguments.out, deadline, _environment(arguments.device, folder))
    print((arguments.out / MARKDOWN_NAME).read_text(encoding="utf-8"))
    return 1 if report.failures() else 0


def check(report: Report, out: Path, deadline: float, environment: dict[str, str]) -> None:
    """Run all parts, each in its share of the time left, and write the report as it grows."""

    def look() -> None:
        report.lines = lines_in(out)
        write_report(report, out)

    for number, part in enumerate(PARTS):
        share = part.weight / sum(later.weight for later in PARTS[number:])
        seconds = share * (deadline - time.monotonic())
        report.running = part.name
        print(f"{part.name}: at most {seconds:.0f} s", flush=True)
        lines = out / f"{part.name}.jsonl"
        try:
            outcome = run_part(part, lines, out / LOG_NAME, seconds, report.device, environment, look)  # type: ignore[arg-type]
        except KeyboardInterrupt:
            look()
            raise
        report.outcomes.append(outcome)
        report.running = None
        look()
        print(f"  {outcome.seconds:.0f} s{': ' + outcome.problem if outcome.problem else ''}", flush=True)
        machine = report.of("machine")
        if machine and not machine[0]["available"]:
            raise InputError(
                f"--device {report.device}: cannot be used: no CUDA device is visible to torch; "
                "--device cpu tries the command without one"
            )


def _empty(out: Path) -> None:
    """Make the folder, without files of an earlier check."""
    out.mkdir(parents=True, exist_ok=True)
    for name in (JSON_NAME, MARKDOWN_NAME, LOG_NAME, *(f"{part.name}.jsonl" for part in PARTS)):
        (out / name).unlink(missing_ok=True)


def _environment(device: str, packages: str) -> dict[str, str]:
    """The environment of the parts: quiet, offline, on that device, with the unpacked packages."""
    own = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    own["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"), packages)))
    left_alone = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    if device == "cpu":
        return left_alone | own | {"ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": ""}
    return left_alone | own | {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
