"""Checkpoints: complete or absent, never partial.

A checkpoint is a transformers model directory (safetensors, tokenizer, the model's code) plus optimizer.safetensors,
trainer_state.json, what interventions and reparametrised matrices need, and a manifest of checksums. Under FSDP2 the weights and
the optimizer's state are in shards instead, one a rank (:mod:`record.shards`). It is written under a temporary name, flushed to
disk and renamed. Random streams need no state: each is a function of the seed and the step.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from common.files import flush_to_disk

from .integrity import MANIFEST_FILE, write_manifest
from .rows import BRANCH_FOLDER
from .shards import INDEX_FILE, Part, Shards, join_shards, write_shard

STATE_FILE = "trainer_state.json"
_MODEL_FILES = ("model.safetensors", "model.safetensors.index.json", INDEX_FILE, MANIFEST_FILE)
"""A folder without any of them never was a checkpoint; one whose manifest lists missing weights is damaged."""
_OPTIMIZER_FILE = "optimizer.safetensors"
MODEL, OPTIMIZER = "model.", "optimizer."
"""What the names of tensors in shards begin with."""
_INTERVENTIONS_FILE = "interventions.safetensors"
"""Written only if an intervention has state."""
_REPARAMETRISED_FILE = "sigma_reparam.safetensors"
"""Written only for a body with ``sigma_reparam``: what its matrices in model.safetensors are made from."""
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
_LEFTOVER = re.compile(r"\.step_\d{8,}(\.[0-9a-f]{8})?\.(tmp|old)")
_NAME = re.compile(r"step_(\d{8,})")


def list_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run directory, oldest first; ``integrity.damage`` checks whether their files are
    intact. Skips links, which a run could neither delete nor replace, and names that a run would not give."""
    folder = run / "checkpoints"
    named = [p for p in folder.iterdir() if _NAME.fullmatch(p.name)] if folder.is_dir() else []
    found = [p for p in named if p == checkpoint_at(run, step_of(p)) and not p.is_symlink()]
    complete = [p for p in found if (p / STATE_FILE).is_file() and any((p / name).is_file() for name in _MODEL_FILES)]
    return sorted(complete, key=step_of)


def is_sharded(checkpoint: Path) -> bool:
    """Whether a checkpoint's tensors are in shards."""
    return (checkpoint / INDEX_FILE).is_file()


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written, from its name."""
    return int(checkpoint.name.removeprefix("step_"))


WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
"""Tensors unsharded and on the CPU, for the main process alone."""
OWN = StateDictOptions()
"""Tensors as this rank has them: possibly shards, and the very ones that training changes."""


def model_tensors(model: nn.Module, bare: nn.Module, options: StateDictOptions = WHOLE) -> dict[str, Tensor]:
    """The weights of ``model`` by their names in ``bare``, the model without wrappers; a tied weight appears once, under its
    first name. All ranks call it."""
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    own = {name for name, _ in bare.named_parameters()}
    tied = {name for name, _ in bare.named_parameters(remove_duplicate=False)} - own
    if weights and weights.keys() != bare.state_dict().keys():
        other = sorted(weights.keys() ^ bare.state_dict().keys())
        raise RuntimeError(
            f"the launch has renamed weights, which no checkpoint could give back: {', '.join(other[:3])}"
        )
    return {name: weight for name, weight in weights.items() if name not in tied}


def optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, options: StateDictOptions = WHOLE
) -> dict[str, Tensor]:
    """The optimizer's state as ``<parameter>.<slot>``. All ranks call it."""
    nested: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=options)
    state: dict[str, dict[str, Tensor]] = nested.get("state", {})
    return {f"{name}.{slot}": value for name, slots in state.items() for slot, value in slots.items()}


def checkpoint_at(run: Path, step: int) -> Path:
    """Path of the checkpoint of ``step``."""
    return run / "checkpoints" / f"step_{step:08d}"


def start_of(run: Path) -> Path | None:
    """The checkpoint from which a branched run begins; None if the run begins with a new model."""
    folder = run / BRANCH_FOLDER
    return next((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), None) if folder.is_dir() else None


def start_step(run: Path) -> int:
    """The step after which a run begins: 0, or where it branched."""
    start = start_of(run)
    return step_of(start) if start else 0


def starting_point(run: Path, step: int) -> Path | None:
    """The checkpoint of ``step``, the one at which the run begins included; None if it begins with a new model there."""
    return start_of(run) if step == start_step(run) else checkpoint_at(run, step)


def same_checkpoint(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same, by their manifests."""
    try:
        return (one / MANIFEST_FILE).read_bytes() == (other / MANIFEST_FILE).read_bytes()
    except OSError:
        return False


def write_checkpoint(
    run: Path,
    step: int,
    save_model: Callable[[Path], None],
    optimizer: dict[str, Tensor],
    interventions: dict[str, Tensor],
    reparametrised: dict[str, Tensor],
    state: dict[str, Any],
) -> Path:
    """Write the checkpoint of ``step``; ``save_model`` fills the directory it is given. Main process only."""
    final = checkpoint_at(run, step)
    temporary = final.with_name(f".{final.name}.tmp")
    for leftover in (temporary, final):
        shutil.rmtree(leftover, ignore_errors=True)
    final.parent.mkdir(exist_ok=True)
    temporary.mkdir()
    try:
        with _system_errors(temporary):
            save_model(temporary)
            save_file(optimizer, temporary / _OPTIMIZER_FILE)
            save_rest(temporary, interventions, reparametrised, {"step": step, **state})
            _publish(temporary, final)
    except Exception:
        shutil.rmtree(temporary, ignore_errors=True)  # frees the space on a full disk
        raise
    return final


def save_rest(
    folder: Path, interventions: dict[str, Tensor], reparametrised: dict[str, Tensor], state: dict[str, Any]
) -> None:
    """Write what a checkpoint has besides model and optimizer."""
    if interventions:
        save_file(interventions, folder / _INTERVENTIONS_FILE)
    if reparametrised:
        save_file(reparametrised, folder / _REPARAMETRISED_FILE)
    (folder / STATE_FILE).write_text(json.dumps(state, indent=1, allow_nan=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _system_errors(place: Path) -> Iterator[None]:
    """Libraries in Rust turn system errors into exceptions of their own, which quote the number: here they are OSErrors again."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and (number := _SYSTEM_ERROR.search(str(error))):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(place)) from error
        raise


def _publish(temporary: Path, final: Path, known: Mapping[str, dict[str, Any]] | None = None) -> None:
    """Flush the folder to disk, then give it its final name. ``known``: entries of the manifest that need no reading."""
    make_readable(temporary)
    write_manifest(temporary, known)
    for path in temporary.iterdir():
        flush_to_disk(path)
    flush_to_disk(temporary)
    temporary.rename(final)
    flush_to_disk(final.parent)


def make_readable(folder: Path) -> None:
    """Give a folder's files the usual permissions: safetensors writes files that only their owner can read."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~mask)


@dataclass(frozen=True)
class Sharded:
    """A checkpoint that all ranks write, each what it holds: first :meth:`write` on every rank, then :meth:`publish` on one. They
    touch nothing that training changes, so that both may run beside it."""

    run: Path
    step: int
    launch: str
    """Eight hexadecimal digits that tell this launch from others: a rank of an earlier one, which has not yet noticed that the
    others are gone, writes elsewhere."""

    @property
    def folder(self) -> Path:
        """Where it is until it is complete."""
        return checkpoint_at(self.run, self.step).with_name(f".step_{self.step:08d}.{self.launch}.tmp")

    def write(self, rank: int, parts: Mapping[str, Part], save: Callable[[Path], None] = lambda _: None) -> None:
        """Write this rank's shard, and what ``save`` writes."""
        self.folder.parent.mkdir(exist_ok=True)
        self.folder.mkdir(exist_ok=True)
        with _system_errors(self.folder):
            save(self.folder)
            write_shard(self.folder, rank, parts)

    def publish(self, ranks: int) -> None:
        """Complete it, once all ranks have written theirs."""
        final, known = checkpoint_at(self.run, self.step), join_shards(self.folder, ranks)
        shutil.rmtree(final, ignore_errors=True)
        _publish(self.folder, final, known)


def set_aside(checkpoint: Path) -> None:
    """Rename an unusable checkpoint, so that nothing starts from it any more."""
    aside = checkpoint.with_name(f"{checkpoint.name}.rejected")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)


def checkpoint_before(run: Path, step: int, every: int = 1) -> Path | None:
    """The newest complete checkpoint before ``step``, from those at multiples of ``every``, or that from which the run begins;
    None means the start, with a new model."""
    earlier = [path for path in list_checkpoints(run) if step_of(path) < step and step_of(path) % every == 0]
    return earlier[-1] if earlier else start_of(run)


def prune(run: Path, keep: int, before: Collection[int] = (), every: int = 1) -> None:
    """Delete all checkpoints except the newest and, of those at multiples of ``every``: the newest ``keep``, the one with
    the lowest validation NLL, and the last one before each step of ``before``."""
    checkpoints = list_checkpoints(run)
    due = [path for path in checkpoints if step_of(path) % every == 0]
    scores = {path: score for path in due if (score := _validation_nll(path)) is not None}
    stays = {*checkpoints[-1:], *due[-keep:], *sorted(scores, key=lambda p: scores[p])[:1]}
    stays |= {path for step in before if (path := checkpoint_before(run, step, every)) is not None}
    for path in checkpoints:
        if path not in stays:
            delete(path)


def _validation_nll(checkpoint: Path) -> float | None:
    """None also if the state cannot be read: a damaged old checkpoint must not end the run."""
    try:
        score: float | None = read_state(checkpoint)["validation_nll"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return score


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint. It is renamed first: a half-deleted directory must not look like a checkpoint."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)  # on a network disk a file that is open may remain; see tidy_up


def tidy_up(run: Path) -> None:
    """Remove what a killed run left half-written or half-deleted. Main process only, before it writes."""
    folder = run / "checkpoints"
    for leftover in folder.iterdir() if folder.is_dir() else ():
        if _LEFTOVER.fullmatch(leftover.name):
            shutil.rmtree(leftover, ignore_errors=True)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's trainer_state.json."""
    state: dict[str, Any] = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    return state


def intervention_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """The interventions' state in a checkpoint; empty if they have none."""
    path = checkpoint / _INTERVENTIONS_FILE
    return load_file(path) if path.exists() else {}


def reparametrised_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """What the matrices of a body with ``sigma_reparam`` are made from; empty if the checkpoint's has none."""
    path = checkpoint / _REPARAMETRISED_FILE
    return load_file(path) if path.exists() else {}


def joined_optimizer(checkpoint: Path) -> dict[str, Tensor]:
    """The optimizer's state as :func:`optimizer_tensors` gave it, unsharded."""
    if not is_sharded(checkpoint):
        return load_file(checkpoint / _OPTIMIZER_FILE)
    shards = Shards(checkpoint)
    return {name.removeprefix(OPTIMIZER): shards.whole(name) for name in shards.names(OPTIMIZER)}


def load_optimizer(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore the optimizer's state for the model's current sharding. Hyperparameters stay as configured."""
    nested: dict[str, Any] = get_optimizer_state_dict(model, optimizer)
    if is_sharded(checkpoint):
        shards = Shards(checkpoint)
        for key in shards.names(OPTIMIZER):
            name, _, slot = key.removeprefix(OPTIMIZER).rpartition(".")
            shards.fill(key, nested["state"][name][slot])
        set_optimizer_state_dict(model, optimizer, nested)
        return
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in joined_optimizer(checkpoint).items():
        name, _, slot = key.rpartition(".")
        state.setdefault(name, {})[slot] = value
    nested["state"] = state
    set_optimizer_state_dict(model, optimizer, nested, options=StateDictOptions(full_state_dict=True))
