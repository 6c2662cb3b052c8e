"""The benchmark of the monitor's cost, on tiny steps: what it prints, not the times."""

from __future__ import annotations

from benchmarks.monitor import main
from tests.conftest import called


def test_it_prints_the_ratio_with_its_interval_on_both_clocks():
    done = called(main, "--steps", "120", "--batch", "1", "--length", "8")
    assert done.returncode == 0, done.stderr
    assert "monitor / alone, wall" in done.stdout
    assert "monitor / alone, cpu" in done.stdout
    assert "median over 6 blocks of 20 steps" in done.stdout
    assert done.stderr == ""


def test_too_few_steps_are_refused_in_a_line():
    done = called(main, "--steps", "30")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --steps: must be a multiple of 20")
