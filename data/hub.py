"""A dataset on the Hugging Face hub as a corpus, streamed up to a token budget.

Without a connection the libraries retry for half a minute before they say so; a probe beforehand says it in seconds.
A folder that holds a copy of a dataset repository is read in place and needs no connection.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from common.errors import InputError
from common.files import paths_below, sha256_of
from configs.schema import HubData

from .readers import RULES_VERSION, pieces, text_of

if TYPE_CHECKING:
    from datasets import IterableDataset

PROBE_SECONDS = 5.0
OTHERWISE = "download it elsewhere and use data.kind=text"


class HubCorpus:
    """The rows of one split of a dataset, a document each (a long one in pieces), in the dataset's order."""

    may_be_cut = True
    remarks = ()

    def __init__(self, data: HubData) -> None:
        self._data = data
        self.max_tokens = data.max_tokens
        self.tokenizer_documents = data.tokenizer_documents
        self._commit: str | None = None

    def identity(self) -> dict[str, Any]:
        """Return name, configuration, split, revision and budgets; for a local copy the hashes of its files as well.

        Without a revision the dataset is taken as it was when the store was built, so that a store can be used offline.
        """
        fields = {"dataset", "config", "split", "revision", "text_field", "max_tokens"}
        if self._data.vocab_size is not None:
            fields.add("tokenizer_documents")
        folder = Path(self._data.dataset)
        paths = paths_below(folder, Path(self._data.cache_dir)) if folder.is_dir() else []
        files = [path for path in paths if path.is_file()]
        hashes = [[path.relative_to(folder).as_posix(), sha256_of(path)] for path in files]
        return {
            "kind": "hub",
            "rules": RULES_VERSION,
            **self._data.model_dump(include=fields),
            "local_files": hashes,
        }

    def describe(self) -> dict[str, Any]:
        """Return the dataset's name and the commit it was read at (None for a cache or a local copy)."""
        return {"dataset": self._data.dataset, "commit": self._commit}

    def documents(self, *, progress: bool) -> Iterator[str]:
        """Yield the rows' texts. Raises InputError for an unreachable hub, an unknown dataset, split or column."""
        field = self._data.text_field
        dataset = self._open()
        rows: Iterable[dict[str, Any]] = tqdm(dataset, desc="reading", unit="row", disable=not progress)
        for number, row in enumerate(self._guarded(rows), start=1):
            if field not in row:
                columns = ", ".join(row)
                raise InputError(
                    f"data.dataset={self._data.dataset}: no column {field!r}; set data.text_field to one of: {columns}"
                )
            yield from pieces(text_of(row[field], field, f"data.dataset={self._data.dataset}: row {number}"))

    def _open(self) -> IterableDataset:
        from datasets import load_dataset  # two seconds that a store already built need not spend

        data = self._data
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

        if constants.HF_HUB_OFFLINE or Path(self._data.dataset).is_dir():
            return None
        return HfApi().dataset_info(self._data.dataset, revision=self._data.revision, timeout=PROBE_SECONDS).sha

    def _guarded(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        from datasets.exceptions import DatasetsError

        try:
            yield from rows
        except _transport_errors() + (OSError, ValueError, DatasetsError) as error:
            raise self._problem(error) from None

    def _problem(self, error: Exception) -> InputError:
        reason = " ".join(str(error).split())
        way_out = f"; {OTHERWISE}" if isinstance(error, ConnectionError) else ""
        return InputError(f"data.dataset={self._data.dataset}: {reason}{way_out}")


def check_hub_reachable(wanted: str, otherwise: str) -> None:
    """Raise InputError within PROBE_SECONDS if the hub does not answer; in offline mode, where caches do, ask nothing.

    Args:
        wanted: the key and value that ask for the hub, for the message.
        otherwise: what to do without it, for the message.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    answered = threading.Event()
    # In a thread because no timeout covers a name server that does not answer.
    prober = threading.Thread(target=_probe, args=(constants.ENDPOINT, answered), daemon=True)
    prober.start()
    prober.join(PROBE_SECONDS)
    if not answered.is_set():
        raise InputError(
            f"{wanted}: {constants.ENDPOINT} does not answer; {otherwise}, "
            "or set HF_HUB_OFFLINE=1 and HF_HOME to a cache that holds it"
        )


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises for time-outs and broken connections: its HTTP library's, whichever that is."""
    names = [name for name in ("httpx", "httpx2") if importlib.util.find_spec(name)]
    return tuple(importlib.import_module(name).HTTPError for name in names)


def _probe(address: str, answered: threading.Event) -> None:
    request = urllib.request.Request(address, method="HEAD")  # noqa: S310 - the hub's own address
    try:
        urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError:
        answered.set()  # a refusal is an answer
    except OSError:
        return
    answered.set()
