"""A table of runs, a row each: settings, progress, losses, spikes and norms.

    python -m analysis.summary RUN|LOG... [--columns ROLE=COLUMN ...] [--out DIR]

RUN is a run directory, LOG a log of any kind that docs/running.md lists: its row has what is there. Prints the table and,
for several runs, the keys in which their configurations differ; with --out also writes summary.json (strict), summary.csv and
summary.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.compare.differing import differing, differing_words
from analysis.logs import RUN_OR_LOG, LogRun, add_columns_option, load_runs_and_logs
from analysis.show.stresses import ACTING
from analysis.show.tables import markdown_table, terminal_table
from analysis.show.text import visible
from common.command import ArgumentParser, exit_status
from common.files import write_json, write_text
from record.finished import Run

TAIL = 0.05
"""The last part of the steps, over which final training values are averaged."""


class Column(NamedTuple):
    """A value of each run: its key in JSON and CSV, its printed heading and format, and what it means."""

    key: str
    heading: str
    form: str
    meaning: str


COLUMNS = (
    Column("arm", "arm", "s", "name of the run"),
    Column("head", "head", "s", "head.kind"),
    Column("objective", "objective", "s", "objective.kind"),
    Column("scale", "scale", "s", "head.scale as configured"),
    Column("steps", "steps", "d", "last step recorded"),
    Column("tokens", "tokens", "tokens", "training tokens up to then"),
    Column("last_loss", "last", ".4f", "last training loss of a log"),
    Column("best_loss", "best", ".4f", "lowest training loss of a log"),
    Column("train_nll", "train NLL", ".4f", f"training NLL, nats per token, mean of the last {TAIL:.0%} of the steps"),
    Column("validation_nll", "val NLL", ".4f", "validation NLL in nats per token at the last evaluation"),
    Column("best_validation_nll", "best val", ".4f", "lowest validation NLL of any evaluation"),
    Column("validation_nll_difference", "Δ val", "+.4f", "final validation NLL minus that of the first run listed"),
    Column("status", "status", "s", "status.json"),
    Column("nll_spikes", "NLL spikes", "d", "spike events on loss/nll"),
    Column("gradient_spikes", "grad spikes", "d", "spike events on grad_norm/total"),
    Column("rises", "rises", "d", "rises of the level of the loss"),
    Column("stalls", "stalls", "d", "times that the loss stood still while logits grew or were saturated"),
    Column("saturated", "saturated", "d", "softmaxes that became saturated"),
    Column("stressed", "stressed", "d", "steps at which a stress acted"),
    Column("rollbacks", "back", "d", "how often a log goes back"),
    Column("non_finite", "NaN/inf", "d", "steps with a NaN or infinite value in any metric"),
    Column("residual_norm_first", "resid first", ".4g", "residual stream before the last norm, mean L2, first step"),
    Column("residual_norm_last", "resid last", ".4g", "the same at the last step"),
    Column("embedding_norm_last", "embed last", ".4g", "mean L2 norm of the output embeddings, last step"),
    Column(
        "tfsd_weight",
        "mean c",
        ".4g",
        f"c of the objective, or TFSD's, mean of the last {TAIL:.0%} of the steps",
    ),
    Column("tokens_per_second", "tokens/s", ",.0f", "throughput, median over the steps"),
)

METRICS = (
    *("loss/nll", "validation/nll", "hidden_norm/pre_final/mean", "embedding_norm/mean", "objective/weight"),
    *("tfsd/weight_mean", "tokens", "throughput/tokens_per_second", ACTING),
)
"""What the columns are made of."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m analysis.summary", description="A table of runs, a row each.")
    parser.add_argument("runs", nargs="+", metavar="RUN|LOG", help=RUN_OR_LOG)
    add_columns_option(parser)
    parser.add_argument("--out", type=Path, help="folder for summary.json, summary.csv and summary.md")
    options = parser.parse_args(arguments)
    runs = load_runs_and_logs(options.runs, options.columns, METRICS.__contains__)
    summaries, configs = summarise(runs), [run.config for run in runs.values() if not isinstance(run, LogRun)]
    header, rows = formatted(summaries)
    legend = (
        f"NLL in nats per token. train NLL, mean c: mean of the last {TAIL:.0%} of the steps. val NLL: last evaluation."
    )
    if any(isinstance(run, LogRun) for run in runs.values()):
        legend += "\nOf logs: losses as logged; spikes found afterwards, those in abandoned branches counted too."
    if len(runs) > 1:
        legend += f"\nΔ val: val NLL minus that of {summaries[0]['arm']}."
    if len(configs) > 1:
        legend += f"\n{differing_words(configs, 'runs')}"
    if options.out:  # first: a reader of what is printed may close the pipe
        used = {column.key: column.meaning for column in _used(summaries)}
        found = {"columns": used, "runs": summaries, "differing": differing(configs)}
        write_json(options.out / "summary.json", found)
        table = pd.DataFrame(summaries)[list(used)]
        write_text(options.out / "summary.csv", table.to_csv(index=False, lineterminator="\n"))
        write_text(options.out / "summary.md", f"{markdown_table(header, rows)}\n{legend}\n")
    print(f"{terminal_table(header, rows)}\n\n{legend}")
    if options.out:
        print(f"written to {options.out}: summary.json, summary.csv, summary.md")


def summarise(runs: dict[str, Run]) -> list[dict[str, Any]]:
    """The values of :data:`COLUMNS` for each labelled run; None for what a run has not logged.

    A logged NaN stays NaN, so the mean over a diverged tail is not a number.
    """
    rows = [_row(label, run) for label, run in runs.items()]
    first = rows[0]["validation_nll"]
    for row in rows if len(rows) > 1 and first is not None else ():
        if row["validation_nll"] is not None:
            row["validation_nll_difference"] = row["validation_nll"] - first
    return rows


def formatted(summaries: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and printed cells; columns in which no run has a value are left out."""
    used = _used(summaries)
    return [column.heading for column in used], [[_cell(row.get(c.key), c.form) for c in used] for row in summaries]


def tail(run: Run, key: str) -> float | None:
    """The mean of ``key`` over the last :data:`TAIL` of the run's steps (at least one); None if it has no value there."""
    last = int(run.metrics.index[-1])
    series = run.series(key)
    values = series[series.index > last - max(1, math.ceil(TAIL * last))].to_numpy()
    return float(np.mean(values)) if values.size else None


def _row(label: str, run: Run) -> dict[str, Any]:
    validation = run.series("validation/nll")
    finite = validation[np.isfinite(validation)]
    residual = run.series("hidden_norm/pre_final/mean")
    tokens = _at(run.series("tokens"), -1)
    throughput = run.series("throughput/tokens_per_second")
    settings = {"head": ("head", "kind"), "objective": ("objective", "kind"), "scale": ("head", "scale")}
    losses = run.series("loss/nll")
    of_log: dict[str, Any] = {}
    if isinstance(run, LogRun):
        best = losses[np.isfinite(losses)]
        of_log = {
            "last_loss": _at(losses, -1),
            "best_loss": float(best.min()) if len(best) else None,
            "rollbacks": len(run.log.abandoned) or None,
        }
    values = {name: run.setting(*keys) for name, keys in settings.items()}
    return {
        "arm": label,
        **{name: None if value is None else visible(str(value)) for name, value in values.items()},
        "steps": int(run.metrics.index[-1]),
        "tokens": None if tokens is None else int(tokens),
        "train_nll": tail(run, "loss/nll"),
        "validation_nll": _at(validation, -1),
        "best_validation_nll": float(finite.min()) if len(finite) else None,
        "validation_nll_difference": None,
        "status": run.status.get("status"),
        "nll_spikes": _spikes(run, "loss/nll"),
        "gradient_spikes": _spikes(run, "grad_norm/total"),
        "rises": _events(run, "rise"),
        "stalls": _events(run, "stall"),
        "saturated": _events(run, "saturated"),
        "stressed": int((run.series(ACTING) > 0).sum()) or None,
        "non_finite": len(np.unique(np.concatenate([[], *run.non_finite.values()]))),
        "residual_norm_first": _at(residual, 0),
        "residual_norm_last": _at(residual, -1),
        "embedding_norm_last": _at(run.series("embedding_norm/mean"), -1),
        "tfsd_weight": tail(run, "objective/weight" if "objective/weight" in run.metrics else "tfsd/weight_mean"),
        "tokens_per_second": float(throughput.median()) if len(throughput) else None,
    } | of_log


def _spikes(run: Run, signal: str) -> int | None:
    """The number of spikes; None for a log without the signal, in which none could be found."""
    return None if isinstance(run, LogRun) and run.series(signal).empty else len(run.spikes(signal))


def _events(run: Run, kind: str) -> int | None:
    """The number of events of a kind, None for none: few runs have any."""
    return sum(event.get("event") == kind and "abandoned" not in event for event in run.events) or None


def _at(series: pd.Series, position: int) -> float | None:
    return float(series.iloc[position]) if len(series) else None


def _used(summaries: Sequence[dict[str, Any]]) -> list[Column]:
    return [column for column in COLUMNS if any(row.get(column.key) is not None for row in summaries)]


def _cell(value: Any, form: str) -> str:
    if value is None:
        return ""
    if form == "tokens":
        return f"{value / 1e9:.2f}B" if value >= 1e9 else f"{value / 1e6:.2f}M" if value >= 1e6 else f"{value:d}"
    return format(value, form)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
