"""The benchmark of starting runs, on tiny ones."""

from benchmarks.suite_start import measured, table


def test_both_ways_of_starting_are_timed(workspace):
    seconds = measured(workspace / "tiny.yaml", [], runs=1)
    assert [len(own) for own in seconds.values()] == [1, 1]
    assert table(seconds).count("\n| a ") == 2
