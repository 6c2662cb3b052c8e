"""Pretrain a language model and monitor it: one run, from configuration to run directory.

    [accelerate launch] train_lm.py --config configs/pydoc_micro.yaml [key.sub=value ...] [--print-config]

Exit status: 0 finished, 2 bad input, 3 diverged (something was not finite), 69 another rank is gone, 74 writing to disk failed,
75 preempted (checkpoint written); after 69, 74 and 75 the same command resumes. The run itself is in training/loop.py.
"""

import os
import sys
from typing import NoReturn

from common.command import EXIT_FINISHED, EXIT_RANK_LOST, EXIT_STORAGE, ArgumentParser, exit_status
from common.imports import importing
from ranks.launch_variables import check_launch_variables

with importing():  # pydantic, OmegaConf and NumPy
    from configs.load import load_config
    from configs.recipe import dump_config
    from configs.schema import RunConfig

# Waiting threads sleep instead of spinning: with one busy neighbour, spinning made a step on two cores several times slower
# (RESULTS.md). Read once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> int:
    """Parse the command line, then run; returns the exit status."""
    parser = ArgumentParser(description="Pretrain a language model and watch it.")
    parser.add_argument("--config", required=True, help="recipe: a YAML file, see configs/")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes to the recipe")
    arguments = parser.parse_args()
    check_launch_variables()
    config = load_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(dump_config(config), end="")
        return EXIT_FINISHED
    return train(config)


def train(config: RunConfig) -> int:
    """Train until the run is finished, diverged or preempted; returns the exit status."""
    from training.loop import run_training  # torch and transformers take seconds to import

    return run_training(config)


def run_and_exit() -> NoReturn:
    """The whole command; ends the process."""
    status = exit_status(main)
    if status in (EXIT_RANK_LOST, EXIT_STORAGE):  # other ranks are gone or blocked: exit without waiting for them
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status)


if __name__ == "__main__":
    run_and_exit()
