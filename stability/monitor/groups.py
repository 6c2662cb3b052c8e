"""The parts of any model: its blocks, its last normalisation, its output embeddings, and its parameters in groups."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Parts:
    """What is measured of a model, as far as it has it."""

    blocks: dict[str, nn.Module] = field(default_factory=dict)
    """By name, as in ``named_modules``, in order."""
    final_norm: nn.Module | None = None
    head: nn.Module | None = None
    """Its ``weight`` (V, D) are the output embeddings."""


def bare(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of DistributedDataParallel, DataParallel and torch.compile."""
    wrapped = nn.parallel.DistributedDataParallel | nn.DataParallel
    while True:
        if isinstance(model, wrapped):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def find_parts(model: nn.Module) -> Parts:
    """The parts of a model, without its wrappers.

    Blocks are the longest ModuleList or Sequential of two or more modules of one type with parameters; those inside another
    such container (experts in a block) do not count. The last normalisation is looked for beside them.
    """
    stacks = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and _is_stack(module)
    }
    outermost = [name for name in stacks if not any(_below(name, other) for other in stacks)]
    if not outermost:
        return Parts(head=_head(model, ()))
    name = max(outermost, key=lambda n: len(stacks[n]))
    blocks = {f"{name}.{child}".lstrip("."): module for child, module in stacks[name].named_children()}
    parent = model.get_submodule(name.rpartition(".")[0])
    norms = [m for child, m in parent.named_children() if "norm" in child.lower() or _is_norm(m)]
    return Parts(blocks, norms[-1] if norms else None, _head(model, blocks))


def _is_stack(modules: nn.ModuleList | nn.Sequential) -> bool:
    kinds = {type(module) for module in modules}
    return len(modules) > 1 and len(kinds) == 1 and any(True for _ in modules[0].parameters())


def _below(name: str, other: str) -> bool:
    return name != other and (name.startswith(f"{other}.") or not other)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _head(model: Any, blocks: Collection[str]) -> nn.Module | None:
    """What transformers calls the output embeddings; elsewhere a last linear layer with as many rows as an embedding."""
    if hasattr(model, "get_output_embeddings"):
        found = model.get_output_embeddings()
        return found if isinstance(getattr(found, "weight", None), nn.Parameter) else None
    outside = {n: m for n, m in model.named_modules() if not any(n == b or _below(n, b) for b in blocks)}
    rows = {m.num_embeddings for m in outside.values() if isinstance(m, nn.Embedding)}
    heads = [m for m in outside.values() if isinstance(m, nn.Linear) and m.out_features in rows]
    return heads[-1] if heads else None


def group_names(model: nn.Module, parts: Parts, patterns: Mapping[str, str]) -> dict[str, str]:
    """The group of each parameter, by its name; a shared parameter has the first of its names.

    The first of ``patterns`` (group: fnmatch pattern of names) that matches decides. Otherwise, with blocks: layer_NN,
    embedding, norm and head, and the first component of the name for what is none of these; without blocks: that component,
    leaving out what all names begin with. Raises ValueError for a pattern that matches nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    for group, pattern in patterns.items():
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"groups: {group}: {pattern!r} matches none of the parameters {_some(names)}")
    modules = dict(model.named_modules())
    common = _common_components(names)
    groups = {}
    for name in names:
        chosen = [group for group, pattern in patterns.items() if fnmatchcase(name, pattern)]
        owner = modules[name.rpartition(".")[0]]
        groups[name] = chosen[0] if chosen else _usual_group(name, owner, parts, common)
    return groups


def _usual_group(name: str, owner: nn.Module, parts: Parts, common: int) -> str:
    if not parts.blocks:
        return name.split(".")[common]
    for number, block in enumerate(parts.blocks):
        if _below(name, block):
            return f"layer_{number:02d}"
    if owner is parts.head:
        return "head"
    if isinstance(owner, nn.Embedding) or "emb" in name or "wpe" in name.split("."):
        return "embedding"
    if owner is parts.final_norm or _is_norm(owner):
        return "norm"
    return name.split(".")[common]


def _common_components(names: list[str]) -> int:
    """How many leading components all names share, leaving each at least one of its own."""
    split = [name.split(".") for name in names]
    shared = 0
    while all(len(parts) > shared + 1 for parts in split) and len({parts[shared] for parts in split}) == 1:
        shared += 1
    return shared


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")
