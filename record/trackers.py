"""Experiment trackers: TensorBoard, W&B and Accelerate's others, which receive the rows of metrics.jsonl as they are
written.

TensorBoard can purge rows that a rewind or a resumed run takes back. The others cannot, so there the steps from the
checkpoint on go to a new run of the tracker: within each tracker run, every step appears once. Only the main process has
trackers.
"""

import contextlib
import itertools
import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import tracking
from accelerate.tracking import GeneralTracker

from common.errors import InputError

from .recorder import Recorder
from .rows import Row

STATE = "trackers.json"
"""File of the run directory with each tracker's last Part."""
CONTINUED = ("wandb", "trackio", "comet_ml", "swanlab", "dvclive")
"""Trackers that let a later process continue a run, by an id assigned here."""
TOLD_ALL = ("wandb",)
"""Trackers whose new run also gets the rows before the checkpoint, because logging is cheap there. (A killed process loses
rows that W&B has not written yet, among them some from before the checkpoint.)"""
EVENT_FILES = "events.out.tfevents."


@dataclass(frozen=True)
class Title:
    """What trackers display about a run: project, name and settings by dotted key."""

    project: str
    group: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """Consecutive steps of a run that a tracker shows as one run of its own."""

    number: int
    """From 1."""
    after: int
    """The step before its first."""
    id: str
    told: int | None = None
    """Its last step, if it was closed properly."""

    def name(self, run_name: str) -> str:
        """Its name in the tracker."""
        return run_name if self.number == 1 else f"{run_name}-{self.number}-back-to-{self.after}"


def refuse_unready(trackers: Sequence[str]) -> None:
    """Raise InputError for trackers that are unknown, not installed or not logged in. Main process only."""
    known = sorted(str(name) for name in tracking.LOGGER_TYPE_TO_CLASS)
    available = [str(name) for name in tracking.get_available_trackers()]
    problems = []
    for tracker in trackers:
        if tracker not in known:
            problems.append(f"trackers: {tracker} is unknown to Accelerate; it knows {', '.join(known)}")
        elif tracker not in available:
            problems.append(f"trackers: {tracker} is not installed; install it or leave it out")
    if problems:
        raise InputError(*problems)
    if "wandb" in trackers:
        _log_in_to_wandb()


def _log_in_to_wandb() -> None:
    # Now rather than after all text has been tokenised.
    import wandb

    try:
        if wandb.setup().settings.mode not in ("offline", "dryrun", "disabled"):
            wandb.login()  # prompts on a terminal
    except (wandb.Error, ValueError, OSError) as error:
        raise InputError(
            f"trackers: wandb: {_described(error)}; mend that, set WANDB_MODE=offline, or leave wandb out"
        ) from error


class Trackers:
    """The trackers that one run reports to."""

    def __init__(self, names: Sequence[str], title: Title, recorder: Recorder, say: Callable[[str], None]) -> None:
        self.names, self.title, self.recorder, self.say = names, title, recorder, say
        self.open: dict[str, GeneralTracker] = {}
        self.parts: dict[str, Part] = {}
        self.step = 0
        """The last step that was logged or that logging resumes after."""

    def start(self, step: int) -> None:
        """Open all trackers for the steps after ``step``. Raises InputError naming the one that fails to start."""
        if not (self.names and self.recorder.writes):
            return
        self.parts, self.step = _read_parts(self.recorder.directory / STATE), step
        # TensorBoard last: it creates a file, and a refused run must leave none.
        for name in sorted(dict.fromkeys(self.names), key="tensorboard".__eq__):
            try:
                self._open(name)
            except Exception as error:
                for tracker in self.open.values():
                    with contextlib.suppress(Exception):  # the first failure is the one reported
                        tracker.finish()
                raise InputError(
                    f"trackers: {name} does not start: {_described(error)}; mend that, or leave {name} out"
                ) from error
        self._write_parts()

    def log(self, rows: Sequence[Row]) -> None:
        """Send rows that are in metrics.jsonl to all trackers."""
        self.step = rows[-1]["step"]
        for name, tracker in list(self.open.items()):
            self._attempt(name, partial(_log, tracker, rows))

    def go_back(self, step: int) -> None:
        """Announce that the rows after ``step`` are about to be taken back."""
        names = self._close_all()
        self.step = step
        for name in names:
            self._attempt(name, partial(self._open, name))
        if names:
            self._write_parts()

    def finish(self) -> None:
        """Close all trackers, which flushes what was logged."""
        closed = self._close_all()
        self.parts |= {name: replace(self.parts[name], told=self.step) for name in closed if name in self.parts}
        if closed:
            self._write_parts()

    def _open(self, name: str) -> None:
        last = self.parts.get(name)
        if name != "tensorboard":
            self.parts[name] = _next_part(name, last, self.step)
        part = self.parts.get(name)
        tracker = make_tracker(name, self.title, self.recorder.directory, part, self.step)
        tracker.start()
        self.open[name] = tracker
        settings = {k: v if isinstance(v, int | float | str) else str(v) for k, v in self.title.settings.items()}
        if name == "tensorboard":
            _write_settings(tracker.tracker, settings)
            return
        tracker.store_init_configuration(settings)
        if name in TOLD_ALL and part is not None and (last is None or part.id != last.id):
            _log(tracker, _rows_until(self.recorder.directory / "metrics.jsonl", self.step))

    def _close_all(self) -> list[str]:
        """Close all; returns the names of those that closed without error."""
        closed = [name for name, tracker in list(self.open.items()) if self._attempt(name, tracker.finish)]
        self.open.clear()
        return closed

    def _attempt(self, name: str, do: Callable[[], Any]) -> bool:
        """Whether ``do`` worked; if not, say so and continue without this tracker."""
        try:
            do()
        except Exception as error:  # noqa: BLE001 - a failing tracker must not end the run
            self.open.pop(name, None)
            where = self.recorder.directory / "metrics.jsonl"
            self.recorder.event("tracker_failed", self.step, step=self.step, tracker=name, reason=_described(error))
            self.say(
                f"{name} fails and gets no more rows of this process: {_described(error)}; all of them are in {where}"
            )
            return False
        return True

    def _write_parts(self) -> None:
        if self.parts:
            parts = {name: asdict(part) for name, part in self.parts.items()}
            self.recorder.write_text(STATE, json.dumps(parts, indent=1) + "\n")


def make_tracker(name: str, title: Title, directory: Path, part: Part | None, step: int) -> GeneralTracker:
    """Accelerate's tracker, not yet started, for the steps after ``step``. Only TensorBoard has no ``part``. Local files go
    to the run directory, ``directory``."""
    tracker = tracking.LOGGER_TYPE_TO_CLASS[name]
    if part is None:
        _put_in_order(directory)
        return tracker(directory.name, str(directory.parent), purge_step=step + 1)
    project, group = title.project, title.group
    run = part.name(group)
    match name:
        case "wandb":
            return tracker(project, name=run, group=group, id=part.id, resume="allow", dir=str(directory))
        case "trackio":
            return tracker(project, name=run, group=group, resume="allow")
        case "swanlab":
            return tracker(project, name=run, group=group, id=part.id, resume="allow", log_dir=str(directory / name))
        case "comet_ml":
            from comet_ml import ExperimentConfig

            return tracker(project, experiment_key=part.id, experiment_config=ExperimentConfig(name=run))
        case "dvclive":
            return tracker(project, dir=str(directory / name / run), resume=True, dvcyaml=None, save_dvc_exp=False)
        case "mlflow":
            return tracker(project, run_name=run)
        case "clearml":
            return tracker(project, task_name=run, reuse_last_task_id=False)
        case "aim":
            return tracker(run, str(directory.parent), experiment=project)
    raise ValueError("it is not known here how its runs are named")


def _next_part(name: str, last: Part | None, step: int) -> Part:
    """The part for the steps after ``step``: the last one, if it can be continued there without repeating a step."""
    if last is None:
        return Part(1, step, secrets.token_hex(16))
    if name in CONTINUED and last.told == step:  # not if it misses some steps
        return replace(last, told=None)
    return Part(last.number + 1, step, secrets.token_hex(16))


def _read_parts(path: Path) -> dict[str, Part]:
    try:
        text = path.read_text(encoding="utf-8")
        return {str(name): Part(**part) for name, part in json.loads(text).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete it, and trackers begin new runs") from None


def _put_in_order(directory: Path) -> None:
    """Make sure TensorBoard reads the next event file last: it sorts names, which begin with the time in seconds. They
    would be out of order after the clock was set back, or within one second."""
    files = sorted(directory.glob(f"{EVENT_FILES}*"))
    if files and files[-1].name >= f"{EVENT_FILES}{int(time.time()):010d}":
        for number, file in enumerate(files):
            rest = file.name.removeprefix(EVENT_FILES).partition(".")[2]
            file.rename(file.with_name(f"{EVENT_FILES}{number:010d}.{rest}"))


def _write_settings(writer: Any, settings: dict[str, Any]) -> None:
    """Send TensorBoard the configuration as add_hparams() does, but without a run folder of its own."""
    from torch.utils.tensorboard.summary import hparams

    experiment, session, _ = hparams(settings, {})
    for summary in (experiment, session):
        writer.file_writer.add_summary(summary)


def _rows_until(path: Path, step: int) -> Iterator[Row]:
    """The rows up to ``step``, read one at a time to save memory."""
    if step == 0:
        return
    with path.open(encoding="utf-8") as lines:
        for row in itertools.takewhile(lambda row: row["step"] <= step, map(json.loads, lines)):
            # Non-finite numbers are stored as strings.
            yield {key: float(value) if isinstance(value, str) else value for key, value in row.items()}


def _log(tracker: GeneralTracker, rows: Iterable[Row]) -> None:
    for row in rows:
        tracker.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".")
