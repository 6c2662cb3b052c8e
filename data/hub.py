"""A dataset on the Hugging Face hub as a corpus, streamed up to a token budget. A folder with a copy of a dataset
repository is read in place, without a connection."""

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from tqdm import tqdm

from common.errors import InputError
from common.files import paths_below, sha256_of
from common.section import MOST, Place, Text

from .corpora import CORPORA, DataConfig, ProseCorpus, ProseOptions
from .reachable import PROBE_SECONDS, check_hub_reachable
from .readers import RULES_VERSION, pieces, text_of

ALTERNATIVE = "download it elsewhere and use data.kind=text"


@CORPORA.register("hub")
class HubCorpus(ProseCorpus):
    """A dataset on the Hugging Face hub, streamed into the store up to a token budget, in the dataset's order.

    A row is a document, or several if it is long.
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
        """Branch, tag or commit; null means the newest when the store was built."""
        text_field: Text = "text"
        """The column that holds the text."""
        max_tokens: Annotated[int, Field(ge=1000, le=MOST)]
        """Stop reading after this many tokens."""
        tokenizer_documents: Annotated[int, Field(ge=1, le=MOST)] = 50_000
        """Number of documents the BPE is trained on if ``vocab_size`` is given."""

    def __init__(self, options: Options, data: DataConfig) -> None:
        super().__init__(options, data)
        self.max_tokens = options.max_tokens
        self.tokenizer_documents = options.tokenizer_documents
        self._commit: str | None = None

    def identity(self) -> dict[str, Any]:
        """Name, configuration, split, revision and budgets; for a local copy also the hashes of its files. Without a
        revision the store keeps the dataset as it was when the store was built, so that it can be used offline."""
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
        """The dataset's name and the commit that was read (None for a cache or a local copy)."""
        return {"dataset": self.options.dataset, "commit": self._commit}

    def documents(self, *, progress: bool) -> Iterator[str]:
        """Yield the rows' texts. Raises InputError for an unreachable hub, or an unknown dataset, split or column."""
        from datasets import load_dataset  # two seconds, not needed if the store exists

        data, place = self.options, f"data.dataset={self.options.dataset}"
        if not Path(data.dataset).is_dir():
            check_hub_reachable(place, ALTERNATIVE)
        with _named(place):
            self._commit = self._commit_on_hub()
            revision = self._commit or data.revision
            rows = load_dataset(data.dataset, data.config, split=data.split, revision=revision, streaming=True)
            for number, row in enumerate(tqdm(rows, desc="reading", unit="row", disable=not progress), start=1):
                if data.text_field not in row:
                    columns = ", ".join(row)
                    raise InputError(
                        f"{place}: no column {data.text_field!r}; set data.text_field to one of: {columns}"
                    )
                yield from pieces(text_of(row[data.text_field], data.text_field, f"{place}: row {number}"))

    def _commit_on_hub(self) -> str | None:
        """The commit that the revision now stands for; None for a cache or a local copy."""
        from huggingface_hub import HfApi, constants

        if constants.HF_HUB_OFFLINE or Path(self.options.dataset).is_dir():
            return None
        return HfApi().dataset_info(self.options.dataset, revision=self.options.revision, timeout=PROBE_SECONDS).sha


@contextlib.contextmanager
def _named(place: str) -> Iterator[None]:
    """Turn the libraries' errors, of a broken connection for example, into an InputError that names the dataset."""
    from datasets.exceptions import DatasetsError

    # Of the HTTP library that the hub's client uses, whichever that is.
    names = [name for name in ("httpx", "httpx2") if importlib.util.find_spec(name)]
    transport = tuple(importlib.import_module(name).HTTPError for name in names)
    try:
        yield
    except (*transport, OSError, ValueError, RuntimeError, DatasetsError) as error:
        alternative = f"; {ALTERNATIVE}" if isinstance(error, ConnectionError) else ""
        raise InputError(f"{place}: {' '.join(str(error).split())}{alternative}") from None
