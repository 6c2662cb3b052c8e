"""Checks before a run is built: a checkpoint, a tokenizer, tokens or a size that cannot be used."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import AutoTokenizer

from common.errors import InputError
from common.files import sha256_of
from configs.schema import RunConfig
from data.store import TokenStore
from optim.optimizers import OptimizerConfig, build_optimizer
from record.checkpoints import list_checkpoints, read_state
from record.integrity import MANIFEST_FILE

from .build import model_config
from .memory import need_of

_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def check_body(config: RunConfig) -> None:
    """Raise InputError, before any text is read, if ``body.checkpoint`` cannot be used."""
    place = config.body.checkpoint
    if place is None:
        return
    if not Path(place).is_dir() and not _HUB_NAME.fullmatch(place):
        raise InputError(f"body.checkpoint: {place}: no such folder")
    if checkpoints := list_checkpoints(Path(place)):
        raise InputError(f"body.checkpoint: {place} is a run; name one of its checkpoints, as {checkpoints[-1]}")
    model_config(config, vocab_size=1, special_id=0)  # the real vocabulary is checked later


def refuse_sharded_reparam(config: RunConfig, accelerator: Accelerator) -> None:
    """Raise InputError for sigmaReparam under FSDP2: a spectral norm is that of a whole matrix."""
    if config.body.sigma_reparam and accelerator.is_fsdp2:
        raise InputError(
            "body.sigma_reparam: needs whole matrices on every rank, which FSDP2 shards; launch without FSDP2"
        )


def check_tokenizer(config: RunConfig, store: TokenStore) -> None:
    """Raise InputError if ``body.checkpoint`` has another tokenizer than the text."""
    place = config.body.checkpoint
    if place is None or not (Path(place) / "tokenizer.json").is_file():
        return
    if _vocabulary(place) != store.load_tokenizer().get_vocab():
        raise InputError(
            f"body.checkpoint: {place} has another tokenizer than the text, so its embeddings are of other tokens; set "
            f"data.vocab_size=null data.tokenizer={place}"
        )


def teacher_manifest(config: RunConfig) -> str | None:
    """What the objective's teacher is, by the hash of its manifest; None without a teacher or its manifest."""
    place = config.objective.options.get("teacher")
    manifest = Path(place or "", MANIFEST_FILE)
    return sha256_of(manifest) if place is not None and manifest.is_file() else None


def check_teacher(config: RunConfig, store: TokenStore, checkpoint: Path | None) -> None:
    """Raise InputError if the objective's teacher has another tokenizer than the text, or is not the one that the run being
    resumed began with."""
    place = config.objective.options.get("teacher")
    if place is None:
        return
    if (Path(place) / "tokenizer.json").is_file() and _vocabulary(place) != store.load_tokenizer().get_vocab():
        raise InputError(
            f"objective.teacher: {place} has another tokenizer than the text, so it predicts other tokens; set "
            f"data.vocab_size=null data.tokenizer={place}"
        )
    before = None if checkpoint is None else read_state(checkpoint)
    if before is None or "teacher" not in before or before["config"]["objective"].get("teacher") != place:
        return  # a new run, one of an older version, or a branch with another teacher
    if before["teacher"] != teacher_manifest(config):
        raise InputError(
            f"objective.teacher: {place} is not what it was when {checkpoint} was written; restore it, or choose another name"
        )


def _vocabulary(place: str) -> dict[str, int]:
    tokenizer: Any = AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return vocabulary


def check_memory(config: RunConfig, vocabulary: int, accelerator: Accelerator) -> tuple[int, str]:
    """Number of parameters, and memory needed, in words. Raises InputError if it cannot fit. Main process only."""
    need = need_of(
        config,
        vocabulary,
        ranks=accelerator.num_processes,
        sharded=accelerator.is_fsdp2,
        device=accelerator.device,
    )
    need.refuse()
    return need.parameters, str(need)


def refuse_other_tokens(store: TokenStore, directory: Path, checkpoint: Path | None) -> None:
    """Raise InputError if the tokens are damaged, or differ from those of the run being resumed."""
    store.verify()
    if checkpoint is not None and read_state(checkpoint)["data"] != store.manifest_hash():
        raise InputError(
            f"{directory}: its text or its tokenizer has changed since {checkpoint.name} was written (the tokens are now those "
            f"of {store.path}); restore them, or choose another name"
        )


def check_optimizer(config: OptimizerConfig, device: torch.device) -> None:
    """Raise InputError for an optimizer that changes anything when ``found_inf`` is 1.

    Guards against non-finite numbers and interventions that skip steps rely on it. Tried on a tiny layer: a skipped step
    followed by a real one must give the same result as the real one alone.
    """
    found = []
    for skipped in (0, 1):
        module = torch.nn.utils.skip_init(nn.Linear, 2, 2, device=device)  # which draws no random numbers
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(0.5)
        optimizer: Any = build_optimizer(module, config)
        try:
            for step in (1, 2) if skipped else (2,):
                for parameter in module.parameters():
                    parameter.grad = torch.full_like(parameter, math.nan if step == 1 else 0.25)
                optimizer.found_inf = torch.full((), float(step == 1), device=device)
                optimizer.step()
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"optimizer.kind: {config.kind} takes no found_inf: {error}; build it fused") from None
        found.append(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]))
    if not torch.equal(*found):
        raise InputError(
            f"optimizer.kind: {config.kind} takes a step where found_inf is 1; build it fused, its state set to 0"
        )
