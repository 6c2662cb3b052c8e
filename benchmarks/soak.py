"""Long runs: does memory stay flat, are all metrics logged, and can a million rows be analysed?

    python -m benchmarks.soak [--steps N] [--rows N] [--out DIR]

Two parts, each skipped at 0. *Steps*: a tiny run with everything on (telemetry, attention probe, detection, evaluation,
checkpoints), whose resident memory is sampled from outside. *Rows*: a long metrics file made from such a run's rows, and the
commands of analysis/ on it: their wall time, CPU time and memory.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import psutil

from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.files import strict
from common.processes import ending, last_lines
from record.rows import last_row
from record.table import Table, json_lines, read_table

# Without torch: the peak memory of a child process is at least that of this process when it was started.

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "configs" / "grammar_micro.yaml"
EVALUATED = 100
PROBED = 20
EDGE = 50
TINY = [
    *("data.documents=1000", "data.sequence_length=32", "data.validation_fraction=0.1"),
    *("body.n_head=2", "body.n_embd=32", "train.batch_size=4", "train.eval_sequences=16"),
    *(f"train.eval_every={EVALUATED}", f"checkpoint.every={EVALUATED}", "checkpoint.keep=2"),
    *(
        "telemetry.flush_every=20",
        f"telemetry.attention_every={PROBED}",
        f"telemetry.edge_every={EDGE}",
        "detection.detector=median_mad",
    ),
]
WARM_UP = 1000
"""Steps after which memory may no longer grow."""
PARTS = 10
"""Growth compares the medians of the first and the last of so many parts of the steps after the warm-up."""
EVERY = 0.5
"""Seconds between two samples of the memory."""
TEMPLATE_STEPS = 200
"""Steps of the run whose last EVALUATED rows are the template of the long file."""
VARIANTS = 20_000
"""Distinct rows; then they repeat with other steps."""
NOISE = 0.05
NON_FINITE_EVERY = 10_000
"""Rows between two whose gradient norm overflowed, as under fp16."""
Row = dict[str, Any]
COMMANDS = {"curves": "curves.png", "summary": "summary", "spikes": "spikes"}
"""Commands of analysis/, and what they write."""


class Sample(NamedTuple):
    """The resident memory of a run, and the step at which it was taken."""

    step: int
    resident: int


def main() -> int:
    """Command line; see the module's docstring. Status 1 if rows are missing."""
    parser = ArgumentParser(description="Memory of a long run, and analysis of a long file.")
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, help="folder that keeps the run and the file (default: a temporary one)")
    options = parser.parse_args()
    for name, least in (("steps", 2 * EVALUATED), ("rows", 1)):
        if getattr(options, name) and getattr(options, name) < least:
            raise InputError(f"--{name}: must be 0 or at least {least}, but is {getattr(options, name)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        complete, template = True, None
        if options.steps:
            template, complete = soak(options.steps, folder)
        if options.rows:
            analyse(options.rows, folder, template or train(TEMPLATE_STEPS, folder, "template")[0])
    return 0 if complete else 1


# ----------------------------------------------------------------------------------------------------------------- steps


def soak(steps: int, folder: Path) -> tuple[Path, bool]:
    """Train, and print memory and missing rows; returns the run directory and whether all rows are there."""
    began = time.perf_counter()
    run, samples = train(steps, folder, f"soak_{steps}")
    highest = max(sample.resident for sample in samples)
    print(f"{steps:,} steps in {time.perf_counter() - began:,.0f} s, {len(samples)} looks at the memory")
    print(f"  resident memory: {_mib(samples[-1].resident)} at the end, {_mib(highest)} at most")
    found = growth(samples)
    text = "not measured, the run is too short" if found is None else f"{found:+.2%}"
    print(f"  growth after the first {WARM_UP} steps: {text}")
    problems = missing(read_table(run / "metrics.jsonl"), steps)
    print(f"  metrics.jsonl: {'; '.join(problems) or f'complete, {steps:,} rows'}")
    return run, not problems


def train(steps: int, folder: Path, name: str) -> tuple[Path, list[Sample]]:
    """Train the tiny recipe in its own process; returns the run directory and the memory over time."""
    run, log = folder / name, folder / f"{name}.log"
    own = [f"train.steps={steps}", f"name={name}", f"output_dir={folder}", f"data.cache_dir={folder / 'cache'}"]
    command = [sys.executable, str(ROOT / "train_lm.py"), "--config", str(RECIPE), *TINY, *own]
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)  # noqa: S603
        samples = list(sampled(process, run / "metrics.jsonl"))
    if process.wait():
        raise InputError(f"the run {ending(process.returncode)}; last in {log}: {''.join(last_lines(log, 1))}")
    return run, samples


def sampled(process: subprocess.Popen[bytes], metrics: Path) -> Iterator[Sample]:
    """The memory of a training process at intervals, from its first row to its end."""
    try:
        while process.poll() is None:
            step, resident = last_step(metrics), psutil.Process(process.pid).memory_info().rss
            if step and resident:  # a zombie has none
                yield Sample(step, resident)
            time.sleep(EVERY)
    except psutil.Error:  # it ended in between
        return
    finally:
        if process.poll() is None:
            process.terminate()


def last_step(metrics: Path) -> int:
    """The step of the last complete row; 0 if there is none yet."""
    row = last_row(metrics)
    return int(row["step"]) if row else 0


def growth(samples: Sequence[Sample]) -> float | None:
    """Relative growth of the memory from the first to the last of the ``PARTS`` after the warm-up; None for a short run."""
    steps, resident = np.array(samples, dtype=np.float64).reshape(-1, 2).T
    later = steps >= WARM_UP
    if not later.any() or steps[-1] < 2 * WARM_UP:
        return None
    part = (steps[-1] - WARM_UP) / PARTS
    first = float(np.median(resident[later & (steps <= max(WARM_UP + part, steps[later][0]))]))
    return float(np.median(resident[steps >= steps[-1] - part])) / first - 1


def missing(table: Table, steps: int) -> list[str]:
    """What a metrics file of ``steps`` steps lacks: steps, or values of metrics that are due at every or at some steps."""
    if not np.array_equal(table.steps, np.arange(1, steps + 1)):
        return [f"{len(table.steps):,} rows, steps {table.steps[0]} to {table.steps[-1]}, instead of 1 to {steps}"]
    problems = []
    due = {"attention": table.steps % PROBED == 0, "validation": table.steps % EVALUATED == 0}
    due["hidden_kurtosis"] = due["attention"]  # of the same probe
    due |= dict.fromkeys(("edge", "adam", "adam_rms"), table.steps % EDGE == 0)
    due["validation"][-1] = True
    for name in table.columns:
        expected = due.get(name.split("/", maxsplit=1)[0], np.ones(steps, dtype=bool))
        wrong = np.flatnonzero(table.written(name) != expected)
        if wrong.size:
            problems.append(f"{name} is wrongly there or not at {wrong.size} steps, first at {table.steps[wrong[0]]}")
    return problems


# ------------------------------------------------------------------------------------------------------------------ rows


def analyse(rows: int, folder: Path, template: Path) -> None:
    """Write a metrics file of ``rows`` rows like those of a run, and print the cost of each command of analysis/ on it."""
    run = folder / f"rows_{rows}"
    run.mkdir(exist_ok=True)
    for name in ("config.yaml", "status.json"):
        (run / name).write_bytes((template / name).read_bytes())
    start = (row for _, row in itertools.islice(json_lines(template / "metrics.jsonl"), TEMPLATE_STEPS))
    written = list(start)[-EVALUATED:]
    write_metrics(run / "metrics.jsonl", written, rows)
    metrics = len({name for row in written for name in row})
    print(f"{rows:,} rows of {metrics} metrics, {_mib((run / 'metrics.jsonl').stat().st_size)}")
    for name, out in COMMANDS.items():
        began = time.perf_counter()
        cpu, peak = cost_of([sys.executable, "-m", f"analysis.{name}", str(run), "--out", str(run / "out" / out)])
        wall = time.perf_counter() - began
        print(f"  analysis.{name:<8} {wall:7.1f} s by the clock, {cpu:7.1f} s of CPU, {_mib(peak)} at most")


def write_metrics(path: Path, template: Sequence[Row], count: int) -> None:
    """Repeat the rows of ``template`` with noise in float32, consecutive steps and tokens."""
    random = np.random.default_rng(0)
    # Each metric at its median: a repeated trend would have a spike at each seam.
    levels = pd.DataFrame([{k: v for k, v in row.items() if isinstance(v, float)} for row in template]).median()
    tokens = template[0]["tokens"] // template[0]["step"]

    def line(row: Row, **overflow: float) -> str:
        """A row without step and tokens."""
        factors = dict(zip(row, np.exp(NOISE * random.standard_normal(len(row))), strict=True))
        noisy = {n: float(np.float32(levels[n] * factors[n])) if isinstance(v, float) else v for n, v in row.items()}
        rest = {name: value for name, value in (noisy | overflow).items() if name not in ("step", "tokens")}
        return json.dumps(strict(rest), allow_nan=False)[1:]

    regular = [line(row) for row in itertools.islice(itertools.cycle(template), VARIANTS)]
    overflowed = [line(row, **{"grad_norm/total": float("inf")}) for row in template[:PROBED]]
    with path.open("w", encoding="utf-8") as file:
        for step in range(1, count + 1):
            lines = regular if step % NON_FINITE_EVERY else overflowed
            file.write(f'{{"step": {step}, "tokens": {step * tokens}, {lines[(step - 1) % len(lines)]}\n')


def cost_of(command: Sequence[str]) -> tuple[float, int]:
    """CPU seconds and peak resident bytes of a command on one thread. Raises InputError with its last line if it fails."""
    with tempfile.NamedTemporaryFile() as output:
        process = subprocess.Popen(  # noqa: S603
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            last = "".join(last_lines(Path(output.name), 1))
            raise InputError(f"{' '.join(command)} {ending(process.returncode)}: {last}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
