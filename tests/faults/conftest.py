"""What the fault tests share: runs that are broken on purpose, and the unbroken run that they are compared with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.conftest import ROOT, events_of, rows_of

REWINDING = (
    "train.steps=60",
    "checkpoint.every=10",
    "checkpoint.keep=3",
    "interventions=[{kind: rewind, min_sigmas: 5}]",
    "stress=[{kind: corrupt_sequences, step: 45, steps: 2, sequences: 8, pattern: random}]",
)
"""A run that goes back before a planted spike: it meets it at step 45, sees it at 49 and goes back to 40."""


@dataclass(frozen=True)
class Ended:
    """How a run's process ended."""

    directory: Path
    status: int | None
    signal: str | None
    output: str
    moments: int
    """File operations in the run directory that it lived to see."""
    seconds: float
    """How long it lived."""


class Starter:
    """Starts runs of the tiny recipe, each in a process of its own; see starter.py."""

    def __init__(self, recipe: Path) -> None:
        self.recipe = recipe
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("starter.py")],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, directory: Path, *overrides: str, **plan: Any) -> Ended:
        """Run in ``directory``. What may be planned:

        ``at``: the number of the file operation at which ``signals`` or ``delete`` act; ``step``: the step before which
        ``signals`` act; ``ignored``: signals that are ignored when it starts; ``kill_after``: seconds after which the process
        is killed from outside, with ``kill_at_file`` only once there is a file of that pattern in its directory; ``limit``:
        seconds after which the run counts as hanging and the test fails, with what it wrote and where its threads stood.
        """
        place = [f"output_dir={directory.parent}", f"name={directory.name}"]
        request = {
            "overrides": [*place, *overrides],
            "recipe": str(self.recipe),
            "folder": str(directory),
            "plan": plan,
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if answer.pop("hung"):
            pytest.fail(f"{directory} hung for {answer['seconds']:.0f} s; output and stacks:\n{answer['output']}")
        return Ended(directory, **answer)

    def close(self) -> None:
        self.process.communicate(timeout=60)


@pytest.fixture(scope="session")
def start(workspace: Path) -> Iterator[Callable[..., Ended]]:
    starter = Starter(workspace / "tiny.yaml")
    yield starter
    starter.close()


@pytest.fixture(scope="session")
def unbroken(start: Starter, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The tiny run as it goes when nothing happens to it."""
    ended = start(tmp_path_factory.mktemp("unbroken") / "run")
    assert ended.status == 0, ended.output
    return ended


@pytest.fixture(scope="session")
def rewinding(start: Starter, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The run of REWINDING as it goes when nothing else happens to it."""
    ended = start(tmp_path_factory.mktemp("rewinding") / "run", *REWINDING)
    assert ended.status == 0, ended.output
    (back,) = [e for e in events_of(ended.directory) if e["event"] == "rewind"]
    assert (back["from_step"], back["to_step"], back["skipped"]) == (49, 40, [[45, 46]])
    return ended


def assert_as_unbroken(directory: Path, unbroken: Path) -> None:
    """The same rows to the bit, no step lost and none twice; the same spikes; the same final weights and optimizer state."""
    assert rows_of(directory) == rows_of(unbroken)
    assert [r["step"] for r in rows_of(directory)] == list(range(1, len(rows_of(directory)) + 1))
    assert spikes_of(directory) == spikes_of(unbroken)
    one, other = (sorted((run / "checkpoints").glob("step_????????"))[-1] for run in (directory, unbroken))
    assert one.name == other.name
    for file in ("model.safetensors", "optimizer.safetensors"):
        left, right = load_file(one / file), load_file(other / file)
        assert left.keys() == right.keys()
        assert all(bool((left[name] == right[name]).all()) for name in left), file


def spikes_of(run: Path) -> list[dict[str, Any]]:
    """Events that the mathematics of a run make, without what names its folder or depends on when it looked."""
    hidden = ("replay", "written_at", "checkpoint")
    return [{k: v for k, v in e.items() if k not in hidden} for e in events_of(run) if e["event"] in ("spike", "stall")]
