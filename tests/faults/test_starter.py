"""The fault suite itself: a run that hangs fails its test, and says where it stood."""

from __future__ import annotations

import pytest


def test_a_run_that_hangs_fails_its_test_with_its_output_and_its_stacks(start, tmp_path):
    """It stops itself at its first file operation; the limit of the other tests is longer."""
    with pytest.raises(pytest.fail.Exception) as failure:
        start(tmp_path / "run", at=1, signals=["SIGSTOP"], limit=2.0)
    told = str(failure.value)
    assert told.startswith(f"{tmp_path / 'run'} hung for ")
    assert "(most recent call first):" in told
    assert "train_lm.py" in told
