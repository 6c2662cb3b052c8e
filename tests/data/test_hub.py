"""A hub dataset: read in place from a copy, and one line within seconds when the hub is out of reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from common.errors import InputError
from data.corpora import DataConfig
from data.kinds import make_corpus
from data.store import TokenStore, open_store

from .corpus import documents_of, sentences, write_jsonl

REPOSITORY = Path(__file__).parents[2]
OPEN = """
import json, sys
from common.command import exit_status
from data.corpora import DataConfig
from data.store import open_store
raise SystemExit(exit_status(lambda: print(open_store(DataConfig(**json.loads(sys.argv[1])), progress=False).path)))
"""


def hub_data(cache_dir: Path, dataset: str, **fields: object) -> DataConfig:
    values = {"sequence_length": 16, "vocab_size": 300, "cache_dir": str(cache_dir), "max_tokens": 3000, **fields}
    return DataConfig.model_validate({"kind": "hub", "dataset": dataset, **values})


def local_copy(folder: Path) -> str:
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", sentences(500))
    return str(folder)


def build(data: DataConfig) -> TokenStore:
    return open_store(data, progress=False)


def test_rows_are_read_up_to_the_budget(tmp_path: Path) -> None:
    store = build(hub_data(tmp_path / "cache", local_copy(tmp_path / "copy"), tokenizer_documents=100))
    tokens = len(store.train.ids) + len(store.validation.ids)
    documents = documents_of(store, "train") + documents_of(store, "validation")
    assert 3000 <= tokens < 3100
    assert sorted(documents) == sorted(sentences(500)[: len(documents)])


def test_a_changed_copy_is_noticed(tmp_path: Path) -> None:
    data = hub_data(tmp_path / "cache", local_copy(tmp_path / "copy"))
    first = build(data)
    assert build(data).path == first.path
    write_jsonl(tmp_path / "copy" / "train.jsonl", sentences(500, seed=1))
    assert build(data).path != first.path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_field": "body"}, r"no column 'body'; set data.text_field to one of: text$"),
        ({"split": "tran"}, r"Bad split: tran"),
        ({"config": "none"}, r"BuilderConfig 'none' not found"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, fields: dict[str, str], message: str) -> None:
    data = hub_data(tmp_path / "cache", local_copy(tmp_path / "copy"), **fields)
    with pytest.raises(InputError, match=rf"^data.dataset={data.dataset}: .*{message}") as caught:
        build(data)
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture
def empty_hub() -> Iterator[str]:
    """The address of a real server that has no dataset."""

    class Nothing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Nothing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def failing(tmp_path: Path, **environment: str) -> str:
    """Open a dataset's store in another process, within ten seconds; return the one line it says."""
    command = [sys.executable, "-c", OPEN, hub_data(tmp_path / "cache", "someone/something").model_dump_json()]
    finished = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert finished.returncode == 2, finished.stderr
    (line,) = finished.stderr.splitlines()
    assert line.startswith("error: data.dataset=someone/something: ")
    assert not list((tmp_path / "cache").glob("*.building"))
    return line


def test_an_unreachable_hub_is_told_with_the_way_out(tmp_path: Path) -> None:
    line = failing(tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    assert "does not answer; download it elsewhere and use data.kind=text, or set HF_HUB_OFFLINE=1" in line


def test_offline_mode_without_a_cache_is_told_with_the_way_out(tmp_path: Path) -> None:
    line = failing(tmp_path, HF_HUB_OFFLINE="1")
    assert "Couldn't reach 'someone/something'" in line
    assert "data.kind=text" in line


def test_an_unknown_dataset_is_told(tmp_path: Path, empty_hub: str) -> None:
    assert "404" in failing(tmp_path, HF_ENDPOINT=empty_hub, HF_HUB_OFFLINE="0")


def test_a_built_store_needs_no_hub(tmp_path: Path) -> None:
    data = hub_data(tmp_path / "cache", local_copy(tmp_path / "copy"))
    store = build(data)
    command = [sys.executable, "-c", OPEN, json.dumps(data.model_dump())]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert finished.stdout.strip() == str(store.path)


def test_long_rows_and_rows_of_bytes_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    book = "\n\n".join(sentences(2000))
    parquet.write_table(pa.table({"text": [book.encode()]}), folder / "train.parquet")
    store = build(hub_data(tmp_path / "cache", str(folder), max_tokens=1 << 20, tokenizer_documents=2))
    found = documents_of(store, "train") + documents_of(store, "validation")
    assert sorted("\n".join(found).split()) == sorted(book.split())
    assert max(map(len, found)) < 20_000
    parquet.write_table(pa.table({"text": [b"fine", b"caf\xe9"]}), folder / "train.parquet")
    with pytest.raises(InputError, match=r"row 2: 'text' is not UTF-8 text: byte 3 \(0xe9\); convert it$"):
        build(hub_data(tmp_path / "cache", str(folder)))


def test_a_change_behind_a_link_is_noticed(tmp_path: Path) -> None:
    local_copy(tmp_path / "elsewhere")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "data").symlink_to("../elsewhere")
    corpus = make_corpus(hub_data(tmp_path / "cache", str(tmp_path / "copy")))
    first = corpus.identity()
    assert [name for name, _ in first["local_files"]] == ["data/train.jsonl"]
    write_jsonl(tmp_path / "elsewhere" / "train.jsonl", sentences(500, seed=1))
    assert corpus.identity() != first
