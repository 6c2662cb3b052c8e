"""A dataset on the Hugging Face hub as a corpus, streamed up to a token budget.

A folder that holds a copy of a dataset repository is read in place and needs no connection.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from tqdm import tqdm

from common.errors import InputError
from common.files import paths_below, sha256_of
from common.section import MOST, Place, Text

from .corpora import CORPORA, DataConfig, ProseCorpus, ProseOptions
from .reachable import PROBE_SECONDS, check_hub_reachable
from .readers import RULES_VERSION, pieces, text_of

if TYPE_CHECKING:
    from datasets import IterableDataset

OTHERWISE = "download it elsewhere and use data.kind=text"


@CORPORA.register("hub")
class HubCorpus(ProseCorpus):
    """A dataset on the Hugging Face hub, streamed into the store up to a token budget, in the dataset's order.

    A row is a document, a long one in pieces.
    """

    may_be_cut = True

    @dataclass(frozen=True, kw_only=True)
    class Options(ProseOptions):
        dataset: Place
        """Name on the hub, for example roneneldan/TinyStories, or a folder with a copy."""
        config: Text | None = None
        """Configuration of the dataset, for example sample-10BT."""
        split: Text = "train"
        """Split of the dataset."""
        revision: Text | None = None
        """Branch, tag or commit; if null, what was newest when the store was built."""
        text_field: Text = "text"
        """The column that holds the text."""
        max_tokens: Annotated[int, Field(ge=1000, le=MOST)]
        """Stop reading after this many tokens."""
        tokenizer_documents: Annotated[int, Field(ge=1, le=MOST)] = 50_000
        """How many documents the BPE is trained on when ``vocab_size`` is given."""

    def __init__(self, options: Options, data: DataConfig) -> None:
        super().__init__(options, data)
        self.max_tokens = options.max_tokens
        self.tokenizer_documents = options.tokenizer_documents
        self._commit: str | None = None

    def identity(self) -> dict[str, Any]:
        """Return name, configuration, split, revision and budgets; for a local copy the hashes of its files as well.

        Without a revision the dataset is taken as it was when the store was built, so that a store can be used offline.
        """
        fields = ["dataset", "config", "split", "revision", "text_field", "max_tokens"]
        if self.options.vocab_size is not None:
            fields.append("tokenizer_documents")
        folder = Path(self.options.dataset)
        paths = paths_below(folder, Path(self.data.cache_dir)) if folder.is_dir() else []
        files = [path for path in paths if path.is_file()]
        hashes = [[path.relative_to(folder).as_posix(), sha256_of(path)] for path in files]
        return {
            "kind": "hub",
            "rules": RULES_VERSION,
            **{name: getattr(self.options, name) for name in fields},
            "local_files": hashes,
        }

    def describe(self) -> dict[str, Any]:
        """Return the dataset's name and the commit it was read at (None for a cache or a local copy)."""
        return {"dataset": self.options.dataset, "commit": self._commit}

    def documents(self, *, progress: bool) -> Iterator[str]:
        """Yield the rows' texts. Raises InputError for an unreachable hub, an unknown dataset, split or column."""
        field = self.options.text_field
        dataset = self._open()
        rows: Iterable[dict[str, Any]] = tqdm(dataset, desc="reading", unit="row", disable=not progress)
        for number, row in enumerate(self._guarded(rows), start=1):
            if field not in row:
                columns = ", ".join(row)
                raise InputError(
                    f"data.dataset={self.options.dataset}: no column {field!r}; set data.text_field to one of: {columns}"
                )
            yield from pieces(text_of(row[field], field, f"data.dataset={self.options.dataset}: row {number}"))

    def _open(self) -> IterableDataset:
        from datasets import load_dataset  # two seconds that a store already built need not spend

        data = self.options
        if not Path(data.dataset).is_dir():
            check_hub_reachable(f"data.dataset={data.dataset}", OTHERWISE)
        try:
            self._commit = self._commit_on_hub()
            revision = self._commit or data.revision
            return load_dataset(data.dataset, data.config, split=data.split, revision=revision, streaming=True)
        except _transport_errors() + (OSError, ValueError, RuntimeError) as error:
            raise self._problem(error) from None

    def _commit_on_hub(self) -> str | None:
        """Return the commit the revision stands for now; None for what is read from this machine."""
        from huggingface_hub import HfApi, constants

        if constants.HF_HUB_OFFLINE or Path(self.options.dataset).is_dir():
            return None
        return HfApi().dataset_info(self.options.dataset, revision=self.options.revision, timeout=PROBE_SECONDS).sha

    def _guarded(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        from datasets.exceptions import DatasetsError

        try:
            yield from rows
        except _transport_errors() + (OSError, ValueError, DatasetsError) as error:
            raise self._problem(error) from None

    def _problem(self, error: Exception) -> InputError:
        reason = " ".join(str(error).split())
        way_out = f"; {OTHERWISE}" if isinstance(error, ConnectionError) else ""
        return InputError(f"data.dataset={self.options.dataset}: {reason}{way_out}")


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises for time-outs and broken connections: its HTTP library's, whichever that is."""
    names = [name for name in ("httpx", "httpx2") if importlib.util.find_spec(name)]
    return tuple(importlib.import_module(name).HTTPError for name in names)
