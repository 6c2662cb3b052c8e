"""Runs in the test's own process, for tests of their steps."""

from pathlib import Path

from accelerate.state import AcceleratorState

from configs.load import load_config
from ranks.launch import start_accelerator
from training.run import build_run


def built(recipe, *overrides):
    """A run at its start, with nothing written."""
    AcceleratorState._reset_state(reset_partial_state=True)
    config = load_config(recipe["path"], [*recipe["overrides"], *overrides])
    train = config.train
    return build_run(
        config,
        start_accelerator(train.precision, batch_size=train.batch_size, stall_seconds=train.stall_seconds),
        Path(config.output_dir) / config.name,
        None,
        writes=False,
    )
