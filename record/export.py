"""Write the model of a checkpoint as transformers reads it, put together where it is in shards (FSDP2).

    python -m record.export RUN[/checkpoints/step_N] --out DIR

DIR then has the weights in model.safetensors, configuration, code and tokenizer. Of a run, its last checkpoint is taken.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.imports import importing


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m record.export", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", metavar="RUN", help="a run directory or one of its checkpoints")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder for the model")
    options = parser.parse_args(arguments)
    with importing():
        from safetensors import SafetensorError
        from transformers.utils import logging

        from configs.load import load_recorded
        from record.finished import resolve_checkpoint, run_directory
        from record.integrity import damage
        from record.whole import export
    logging.disable_progress_bar()
    checkpoint = resolve_checkpoint(options.checkpoint)
    load_recorded(run_directory(checkpoint))  # registers what its plugins define
    if problem := damage(checkpoint):
        raise InputError(f"{checkpoint} cannot be used: {problem}")
    if options.out.exists():
        raise InputError(f"--out: {options.out} is there already; give another folder")
    try:
        export(checkpoint, options.out)
    except (OSError, ValueError, SafetensorError) as error:
        shutil.rmtree(options.out, ignore_errors=True)
        raise InputError(
            f"--out: {checkpoint} cannot be written to {options.out}: {' '.join(str(error).split())}"
        ) from None
    print(f"{checkpoint}: written to {options.out}")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
