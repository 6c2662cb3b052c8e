"""Choosing parameters by name, and the parts of sharded ones. Shared by the stresses of tensors."""

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import AfterValidator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from common.section import Text
from stability.measure.norms import groups_of

from .base import Stress

_NEAR = 3
"""Names that an error lists."""


def _compiled(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from None
    return text


Pattern = Annotated[Text, AfterValidator(_compiled)]
"""A regular expression for names of parameters."""


def names_matching(model: nn.Module, pattern: str, stress: Stress, key: str) -> list[str]:
    """Names of the trained parameters in which ``pattern`` occurs, or whose group (embedding, layer_NN, norm, head) it matches
    as a whole. Raises InputError about the option ``key`` with the nearest names if there are none."""
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    names, groups = list(trained), groups_of(model)
    of_group = {i for group, members in groups.items() if re.fullmatch(pattern, group) for i in members}
    found = [n for i, n in enumerate(names) if trained[n] and (i in of_group or re.search(pattern, n))]
    if not found:
        stress.refuse(key, f"{pattern!r} matches no parameter and no group; {nearest(pattern, [*groups, *names])}")
    return found


def nearest(word: str, names: Iterable[str]) -> str:
    """The names most like ``word``, for an error."""
    return f"the nearest are {', '.join(difflib.get_close_matches(word, list(names), _NEAR, cutoff=0.0))}"


def refuse_sharded(model: nn.Module, stress: Stress) -> None:
    """Raise InputError if parameters are sharded (FSDP2)."""
    if any(isinstance(p, DTensor) for p in model.parameters()):
        stress.refuse("kind", f"{stress.kind} cannot act on sharded parameters; launch without FSDP2")


def local(tensor: Tensor) -> Tensor:
    """The elements that this rank holds, as a view outside the graph."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def place_of(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The position of the ``index``-th element of a tensor of this shape."""
    return tuple(reversed(list(_digits(index, shape))))


def _digits(index: int, shape: tuple[int, ...]) -> Iterator[int]:
    for size in reversed(shape):
        index, digit = divmod(index, size)
        yield digit
