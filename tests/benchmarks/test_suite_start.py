"""The benchmark of starting runs, on tiny ones."""

from benchmarks.suite_start import measured, table


def test_both_ways_of_starting_are_timed(workspace):
    seconds = measured(workspace / "tiny.yaml", [], runs=2)
    assert [len(own) for own in seconds.values()] == [2, 2]
    assert table(seconds).count("\n| a ") == 2
