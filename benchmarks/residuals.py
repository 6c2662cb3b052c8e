"""Noise of real logs: residuals of public logs in benchmarks/residuals.csv, and how to draw from them.

    python -m benchmarks.residuals FOLDER     # writes the file, which was made once, from public logs

FOLDER holds a parquet file for each log (columns step, and loss or grad_norm). The file has only residuals of these:

    pythia_160m-0, pythia_70m-6   EleutherAI/pythia (Apache-2.0), hmm-training-maps/training_losses
    llmc_124m                     KellerJordan/modded-nanogpt (MIT), records/track_1_short, 2024-10-13, llmc
    modded_1b                     KellerJordan/modded-nanogpt (MIT), 2024-10-20, ScaleUp1B

A column for each; its three headings are log, signal, and robust sigma in the signal's unit (of a norm: of its logarithm).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.files import write_text
from record.metrics import kind_of

Floats = npt.NDArray[np.float64]

RESIDUALS = Path(__file__).with_name("residuals.csv")
WINDOW, NOISE_WINDOW = 201, 501
"""Values of the running median that is the trend, and of the one that is the local noise."""
SHORTEST, LONGEST = 20, 50
"""Values of a block: what is correlated within some values stays so."""


class Source(NamedTuple):
    """Lines ``first`` to ``last`` of a log, in steps, in which a viewer saw neither a spike nor a rise of the level."""

    log: str
    column: str
    signal: str
    first: int
    last: int


SOURCES = (
    Source("pythia_160m-0", "loss", "loss/nll", 30_000, 31_499),
    Source("pythia_70m-6", "loss", "loss/nll", 20_000, 21_499),
    Source("llmc_124m", "loss", "loss/nll", 10_000, 11_499),
    Source("modded_1b", "loss", "loss/nll", 8_000, 9_499),
    # Ends before the first value of twice the usual one.
    Source("llmc_124m", "grad_norm", "grad_norm/total", 700, 1_899),
)


class Noise(NamedTuple):
    """Residuals of one log in robust sigmas, and that sigma in the signal's unit (of a norm: of its logarithm)."""

    name: str
    signal: str
    sigma: float
    residuals: Floats


def standardised(values: Floats, window: int = WINDOW, noise_window: int = NOISE_WINDOW) -> tuple[Floats, float]:
    """Distances from a running median in units of the local robust sigma (1.4826 times their running median size), and the
    median of that sigma."""
    series = pd.Series(values)
    residuals = series - series.rolling(window, center=True, min_periods=window // 4).median()
    sigma = 1.4826 * residuals.abs().rolling(noise_window, center=True, min_periods=noise_window // 5).median()
    return (residuals / sigma).to_numpy(), float(sigma.median())


def bootstrap(random: np.random.Generator, residuals: Floats, count: int) -> Floats:
    """``count`` values of noise: blocks of SHORTEST to LONGEST neighbouring residuals, drawn with replacement, end to end."""
    blocks, drawn = [], 0
    while drawn < count:
        length = int(random.integers(SHORTEST, LONGEST + 1))
        start = int(random.integers(0, len(residuals) - length + 1))
        blocks.append(residuals[start : start + length])
        drawn += length
    return np.concatenate(blocks)[:count]


def load_noise() -> list[Noise]:
    """The residuals of all public logs."""
    table = pd.read_csv(RESIDUALS, header=[0, 1, 2])
    return [
        Noise(name, signal, float(sigma), table[name, signal, sigma].dropna().to_numpy(np.float64))
        for name, signal, sigma in table.columns
    ]


def derive(folder: Path) -> pd.DataFrame:
    """The table of the file, from logs. Raises InputError naming one that cannot be read or lacks its column."""
    columns = {}
    for source in SOURCES:
        file = folder / f"{source.log}.parquet"
        try:
            rows = pd.read_parquet(file, columns=["step", source.column]).dropna()
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            raise InputError(
                f"{file} cannot be read ({error}); it needs the columns step and {source.column}"
            ) from error
        values = rows[source.column][rows["step"].between(source.first, source.last)].to_numpy(np.float64)
        if len(values) != source.last - source.first + 1:
            raise InputError(
                f"{file} has {len(values)} values at steps {source.first} to {source.last}: name whole logs"
            )
        residuals, sigma = standardised(np.log(values) if kind_of(source.signal) == "norm" else values)
        columns[source.log, source.signal, f"{sigma:.3g}"] = pd.Series(residuals)
    return pd.DataFrame(columns)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(description="Write benchmarks/residuals.csv from public logs.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    table = derive(parser.parse_args().folder)
    write_text(RESIDUALS, table.to_csv(index=False, float_format="%.3f", lineterminator="\n"))
    print(f"{RESIDUALS}: {len(table.columns)} logs")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
