"""Another text as tokens of a run's tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from common.errors import InputError, note

from .build import encoded
from .readers import read_documents
from .text import find_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from .store import TokenStore

MOST_TOKENS = 1 << 22
"""Of a longer text the first part is enough."""


def foreign_tokens(
    store: TokenStore, paths: Sequence[str], text_field: str, length: int, keys: tuple[str, str]
) -> npt.NDArray[np.int64]:
    """The text at ``paths`` as tokens of the store's tokenizer, an end-of-text token after each document.

    ``keys``: what the configuration calls ``paths`` and ``text_field``. Raises InputError for a text that cannot be read, or is
    too short for one sequence of ``length`` tokens and the next one.
    """

    def named(problem: str) -> str:
        """A line about the corpus's keys as one about these."""
        for known, key in zip(("paths", "text_field"), keys, strict=True):
            problem = re.sub(rf"\bdata\.{known}\b", key, problem)
        return problem

    try:
        files, remarks = find_files(list(paths), Path(store.path).parent)
        for remark in remarks:
            note(named(remark))
        tokenizer = cast("PreTrainedTokenizerFast", store.load_tokenizer())
        documents = (text for file in files for text in read_documents(file, text_field) if text.strip())
        found = [document.ids for document in encoded(tokenizer, documents, MOST_TOKENS)]
    except InputError as error:
        raise InputError(*map(named, error.problems)) from None
    tokens = np.concatenate([np.empty(0, np.uint32), *found])[:MOST_TOKENS].astype(np.int64)
    if len(tokens) <= length:
        raise InputError(
            f"{keys[0]}: {len(tokens)} tokens are too few for one sequence of data.sequence_length={length} "
            f"({', '.join(paths)})"
        )
    return tokens
