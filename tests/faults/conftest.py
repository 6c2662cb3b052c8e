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
from torch import Tensor

from record.checkpoints import is_sharded, joined_optimizer, list_checkpoints
from record.whole import has_weights, joined_weights
from tests.conftest import ROOT, events_of, rows_of
from tests.distributed.ranks import SHARDED, places

FORMS = ("whole", "sharded")
"""Checkpoints as one process writes them, and in shards (FSDP2), of which a launch of one rank has one."""
MANY_FORMS = ("whole", pytest.param("sharded", marks=pytest.mark.faults))

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
    return rewound(start, tmp_path_factory.mktemp("rewinding") / "run")


def rewound(start: Callable[..., Ended], directory: Path) -> Ended:
    ended = start(directory, *REWINDING)
    assert ended.status == 0, ended.output
    (back,) = [e for e in events_of(ended.directory) if e["event"] == "rewind"]
    assert (back["from_step"], back["to_step"], back["skipped"]) == (49, 40, [[45, 46]])
    return ended


@dataclass(frozen=True)
class Form:
    """How runs are started that write checkpoints of one form, and unbroken ones by the overrides that they were given."""

    sharded: bool
    starter: Starter
    folder: Path
    unbroken_runs: dict[tuple[str, ...], Ended]

    def start(self, directory: Path, *overrides: str, **plan: Any) -> Ended:
        """As the starter does."""
        return self.starter(directory, *overrides, **plan, environment=(SHARDED | places(1)[0]) if self.sharded else {})

    def unbroken(self, *overrides: str) -> Ended:
        """A run as it goes when nothing happens to it."""
        if overrides not in self.unbroken_runs:
            ended = self.start(self.folder / f"run_{len(self.unbroken_runs)}", *overrides)
            assert ended.status == 0, ended.output
            assert is_sharded(list_checkpoints(ended.directory)[-1]) == self.sharded
            self.unbroken_runs[overrides] = ended
        return self.unbroken_runs[overrides]

    def middle(self) -> int:
        """A moment at which the unbroken run is between its first and its last checkpoint; with shards much comes after that."""
        return int(self.unbroken().moments * (0.4 if self.sharded else 0.6))


@pytest.fixture(scope="session")
def forms(start: Starter, unbroken: Ended, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Form]:
    whole = Form(False, start, tmp_path_factory.mktemp("whole"), {(): unbroken})
    return {"whole": whole, "sharded": Form(True, start, tmp_path_factory.mktemp("sharded"), {})}


@pytest.fixture
def form(request: pytest.FixtureRequest, forms: dict[str, Form]) -> Form:
    """The form that a test is given by name."""
    found: Form = forms[request.param]
    return found


def assert_as_unbroken(directory: Path, unbroken: Path) -> None:
    """The same rows to the bit, no step lost and none twice; the same spikes; the same final weights and optimizer state."""
    assert rows_of(directory) == rows_of(unbroken)
    assert [r["step"] for r in rows_of(directory)] == list(range(1, len(rows_of(directory)) + 1))
    assert spikes_of(directory) == spikes_of(unbroken)
    one, other = (sorted((run / "checkpoints").glob("step_????????"))[-1] for run in (directory, unbroken))
    assert one.name == other.name
    for state_of in (weights_of, joined_optimizer):
        left, right = state_of(one), state_of(other)
        assert left.keys() == right.keys()
        assert all(bool((left[name] == right[name]).all()) for name in left), state_of


def weights_of(checkpoint: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint: where they are for transformers and in shards too, in both the same."""
    if not is_sharded(checkpoint):
        return load_file(checkpoint / "model.safetensors")
    weights = joined_weights(checkpoint)
    if has_weights(checkpoint):
        consolidated = load_file(checkpoint / "model.safetensors")
        assert consolidated.keys() == weights.keys()
        assert all(consolidated[name].equal(weights[name]) for name in weights)
    return weights


def spikes_of(run: Path) -> list[dict[str, Any]]:
    """Events that the mathematics of a run make, without what names its folder or depends on when it looked."""
    hidden = ("replay", "written_at", "checkpoint")
    return [{k: v for k, v in e.items() if k not in hidden} for e in events_of(run) if e["event"] in ("spike", "stall")]
