"""The benchmark of starting runs, on tiny ones."""

from benchmarks.suite_start import measured, table


def test_both_ways_of_starting_are_timed(workspace):
    """Every run of either way begins anew: none takes the other's directory for its own."""
    seconds = measured(workspace / "tiny.yaml", [], runs=2)
    assert [len(own) for own in seconds.values()] == [2, 2]
    cold, warm = seconds.values()
    assert min(cold + warm) > 0.05  # a directory that is there already is found at once
    assert table(seconds).count("\n| a ") == 2
