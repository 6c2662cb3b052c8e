"""Text that is tokenised already: every format is the same text, its store refers to it, and a change is not overlooked.

Shapes: N tokens of a stream, S spans, D documents.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from configs.load import load_config
from data.batches import Batches
from data.corpora import DataConfig
from data.prepare import summary
from data.split import FAR, is_near
from data.store import TokenStore, open_store, read_store
from data.text import SourceFile, identify
from data.tokens.build import Separator, Source, hold_out, read_stream
from data.tokens.files import natural, token_file
from data.tokens.spans import SpannedIds, cut_spans
from record.checkpoints import list_checkpoints
from train_lm import train

from ..conftest import rows_of
from .corpus import build, sentences, write_jsonl

V, END = 300, 0
"""Of the tokenizer that all tests share."""
ENDS = {"separator": END, "separator_at": "end"}


def shard(path: Path, ids: np.ndarray, magic: int = 20240520, version: int = 1, dtype: str = "<u2") -> Path:
    """As llm.c and modded-nanogpt write it."""
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids)
    path.write_bytes(header.tobytes() + ids.astype(dtype).tobytes())
    return path


def llama_shard(path: Path, ids: np.ndarray) -> Path:
    """As llm.c writes it for Llama 3."""
    return shard(path, ids, 20240801, 7, "<u4")


def headless(path: Path, ids: np.ndarray) -> Path:
    """As nanoGPT writes it."""
    ids.astype("<u2").tofile(path)
    return path


def array(path: Path, ids: np.ndarray, dtype: str = "<i8") -> Path:
    """As numpy.save writes it, under a name that says nothing."""
    with path.open("wb") as handle:
        np.save(handle, ids.astype(dtype))
    return path


def dataset(path: Path, ids: np.ndarray) -> Path:
    """As datasets writes it, in rows that are no documents, and two files."""
    rows = [row.tolist() for row in np.array_split(ids, 5)]
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"n": list(range(5)), "input_ids": rows}).save_to_disk(path, num_shards=2)
    return path


FORMATS = [headless, shard, llama_shard, array, dataset]
Write = Callable[[Path, np.ndarray], Path]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """The store of the same text through data.kind=text, which has the tokenizer of all tests."""
    folder = tmp_path_factory.mktemp("text")
    return build(folder / "cache", write_jsonl(folder / "a.jsonl", sentences(300)), validation_fraction=0.1)


def tokens_data(cache_dir: Path, text: TokenStore, *paths: Path | str, **fields: Any) -> DataConfig:
    values = {"sequence_length": 16, "cache_dir": str(cache_dir), "tokenizer": str(text.path / "tokenizer"), **fields}
    return DataConfig(kind="tokens", paths=list(map(str, paths)), **values)


def opened(*arguments: Any, **fields: Any) -> TokenStore:
    return open_store(tokens_data(*arguments, **fields), progress=False)


def problem(*arguments: Any, **fields: Any) -> str:
    with pytest.raises(InputError) as caught:
        opened(*arguments, **fields)
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_is_the_text_that_was_tokenised(write: Write, text: TokenStore, tmp_path: Path) -> None:
    ids = np.asarray(text.train.ids)
    for number, part in enumerate(np.split(ids, [1000, 1003])):  # the middle of documents
        write(tmp_path / f"train_{number + 9}.bin", part)
    held_out = write(tmp_path / "held_out.bin", np.asarray(text.validation.ids))
    store = opened(tmp_path / "cache", text, tmp_path / "train_*.bin", validation_paths=[str(held_out)], **ENDS)
    for name in ("train", "validation"):
        own, other = getattr(store, name), getattr(text, name)
        assert np.asarray(own.ids).tobytes() == np.asarray(other.ids).tobytes()
        assert own.ids.dtype == other.ids.dtype
        assert np.array_equal(own.document_starts, other.document_starts)
    assert (store.vocab_size, store.eos_id) == (V, END)
    for one, other in zip(
        Batches(store.train.ids, 16, 4, 7).at(9), Batches(text.train.ids, 16, 4, 7).at(9), strict=True
    ):
        assert torch.equal(one, other)
    names = {path.name for path in store.path.iterdir()}
    assert {"train_spans.npy", "train_documents.npy"} < names
    assert not {"train.bin", "validation.bin"} & names
    store.verify()


def documents(stream: Any, which: Sequence[bool] | np.ndarray) -> list[tuple[int, ...]]:
    """The chosen documents of a stream, without their separators."""
    ends = [*stream.start_D[1:], len(stream.ids)]
    found = [np.asarray(stream.ids[start:end]) for start, end in zip(stream.start_D, ends, strict=True)]
    return [tuple(ids[ids != END].tolist()) for ids, chosen in zip(found, which, strict=True) if chosen]


DOCUMENTS = st.lists(st.lists(st.integers(1, V - 1), min_size=2, max_size=9), min_size=40, max_size=80)


@settings(max_examples=15, deadline=None)
@given(texts=DOCUMENTS, cuts=st.lists(st.integers(1, 39), max_size=3, unique=True), fraction=st.floats(0.05, 0.45))
def test_documents_are_found_whatever_file_they_are_in_and_wherever_the_separator_is(
    texts: list[list[int]], cuts: list[int], fraction: float
) -> None:
    held = {}
    for at in ("start", "end"):
        ids = np.array([token for one in texts for token in ([END, *one] if at == "start" else [*one, END])])
        with tempfile.TemporaryDirectory() as folder:
            parts = np.split(ids, sorted(cuts))
            paths = [FORMATS[n % 4](Path(folder) / f"{n}.bin", part) for n, part in enumerate(parts)]
            sources = [Source(number, path, token_file(path)) for number, path in enumerate(paths)]
            stream = read_stream(sources, Separator(END, at), V, np.dtype("<u2"), progress=False)
            assert np.array_equal(stream.ids, ids)
            assert documents(stream, [True] * len(texts)) == list(map(tuple, texts))
            stream, held_D = hold_out(stream, Separator(END, at), fraction)
            train, held[at] = documents(stream, ~held_D), documents(stream, held_D)
            if len(held_D) == len(texts):  # none was cut
                assert Counter(train + held[at]) == Counter(map(tuple, texts))
                assert not set(train) & set(held[at]), "copies share a split"
                share = sum(len(one) + 1 for one in held[at]) / len(ids)
                assert is_near(share, fraction, FAR)
    assert len(held_D) > len(texts) or held["start"] == held["end"]


@given(data=st.data(), counts=st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_spans_are_the_naive_selection(data: st.DataObject, counts: list[int]) -> None:
    generator = np.random.default_rng(sum(counts))
    files = [
        generator.integers(0, 100, count).astype(dtype)
        for count, dtype in zip(counts, ["<u2", "<u4", ">i8", "u1", "<i4"], strict=False)
    ]
    ids = np.concatenate(files).astype(np.uint16)
    starts = np.array([0, *sorted(data.draw(st.sets(st.integers(1, len(ids) - 1))) if len(ids) > 1 else [])])
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=len(starts), max_size=len(starts))))
    expected = ids[np.repeat(chosen, np.diff(starts, append=len(ids)))]
    first, last = sorted(data.draw(st.tuples(st.integers(-40, 160), st.integers(-40, 160))))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(number) for number in range(len(files))]
        for path, file in zip(paths, files, strict=True):
            path.write_bytes(bytes(8) + file.tobytes())
        whole_S3 = np.array([[number, 8, len(file)] for number, file in enumerate(files)])
        span_S3 = cut_spans(whole_S3, [file.itemsize for file in files], starts, chosen)
        found = SpannedIds(paths, [file.dtype for file in files], span_S3, np.dtype("<u2"))
        assert len(found) == len(expected)
        assert np.array_equal(found, expected)
        assert np.array_equal(found[first:last], expected[first:last])


def test_without_a_separator_a_file_is_a_document_and_the_last_one_is_cut(text: TokenStore, tmp_path: Path) -> None:
    ids = np.asarray(text.train.ids)
    one = opened(tmp_path / "cache", text, headless(tmp_path / "a.bin", ids), validation_fraction=0.1)
    assert np.array_equal(np.concatenate([one.train.ids, one.validation.ids]), ids)
    assert len(one.validation.ids) == round(0.1 * len(ids))
    assert [part.document_starts.tolist() for part in (one.train, one.validation)] == [[0], [0]]
    assert one.eos_id == text.eos_id
    rows = opened(tmp_path / "cache", text, dataset(tmp_path / "rows", ids), validation_paths=[str(tmp_path / "a.bin")])
    assert rows.train.document_starts.tolist() == np.cumsum([0, *map(len, np.array_split(ids, 5)[:-1])]).tolist()


def test_shards_are_in_natural_order() -> None:
    names = [Path(f"a_{number}/x{number}y.bin") for number in (10, 9, 2, 100)]
    assert [path.parent.name for path in sorted(names, key=natural)] == ["a_2", "a_9", "a_10", "a_100"]
    assert natural(Path("a_1.bin")) != natural(Path("a_01.bin")), "their order is that of the file system"


def test_more_files_than_may_be_open_are_read(tmp_path: Path) -> None:
    paths = [array(tmp_path / str(number), np.full(3, number)) for number in range(200)]
    span_S3 = np.array([[number, 128, 3] for number in range(200)])
    before = len([*Path("/dev/fd").iterdir()])
    found = SpannedIds(paths, [np.dtype("<i8")] * 200, span_S3, np.dtype("<u2"))
    assert np.array_equal(found, np.repeat(np.arange(200), 3))
    assert len([*Path("/dev/fd").iterdir()]) - before <= 64
    os.truncate(paths[0], 136)
    with pytest.raises(InputError, match="0: is shorter than when its tokens were counted; restore it"):
        _ = found[:3]


def test_a_file_that_grows_before_it_is_identified_is_read_to_its_end(
    text: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = np.asarray(text.train.ids)
    path = headless(tmp_path / "a.bin", ids[:99])

    def grown(path: Path, known: dict[str, SourceFile]) -> SourceFile:
        return identify(headless(path, ids), known)

    monkeypatch.setattr("data.tokens.corpus.identify", grown)
    store = opened(tmp_path / "cache", text, path, validation_fraction=0.1)
    assert len(store.train.ids) + len(store.validation.ids) == len(ids)


def test_a_moved_source_is_the_same_store_and_a_changed_one_is_refused(text: TokenStore, tmp_path: Path) -> None:
    ids = np.asarray(text.train.ids)
    path, held_out = headless(tmp_path / "a.bin", ids), headless(tmp_path / "b.bin", ids[:99])
    for file in (path, held_out):
        os.utime(file, ns=(0, 10**18))
    fields = {"validation_paths": [str(held_out)], **ENDS}
    first = opened(tmp_path / "cache", text, path, **fields)
    (tmp_path / "moved").mkdir()
    moved = path.rename(tmp_path / "moved" / "a.bin")
    second = opened(tmp_path / "cache", text, moved, **fields)
    assert second.manifest_hash() == first.manifest_hash()
    assert np.array_equal(second.train.ids, ids)
    second.verify()
    with pytest.raises(InputError, match=rf"^{path}: is gone, and a token store refers to it; restore it"):
        read_store(first.path)

    changed = ids.copy()
    changed[5] = changed[5] % (V - 1) + 1
    headless(path, changed)
    assert opened(tmp_path / "cache", text, path, **fields).path != first.path
    with pytest.raises(InputError, match=rf"^{path}: has changed since a token store was made that refers to it"):
        read_store(first.path)
    os.utime(path, ns=(0, 10**18))
    with pytest.raises(InputError, match=r"a.bin: has changed"):
        read_store(first.path).verify()


@pytest.mark.parametrize("other", [{"separator_at": "start"}, {"validation_fraction": 0.3}, {"separator": 14}])
def test_other_options_are_another_store(other: dict[str, Any], text: TokenStore, tmp_path: Path) -> None:
    path = headless(tmp_path / "a.bin", np.asarray(text.train.ids))
    stores = [opened(tmp_path / "cache", text, path, **fields) for fields in (ENDS, {**ENDS, **other})]
    assert stores[0].path != stores[1].path
    assert stores[1].eos_id == other.get("separator", END)


IDS = np.arange(1, 100)
EVEN = np.arange(64) % 2 * 5
WRONG = [
    (headless, IDS[:0], r"a.bin: is empty; leave it out"),
    (array, IDS[:0], r"a.bin: holds no tokens; leave it out"),
    (
        headless,
        IDS + 210,
        r"a.bin: id 300, token 89 of the file counted from 0, is not among the 300 of data.tokenizer; name",
    ),
    (array, IDS - 2, r"a.bin: id -1, token 0 .*, is negative; drop the padding"),
    (
        lambda path, ids: array(path, ids, "u1"),
        IDS,
        r"a.bin: uint8 holds ids up to 255, and data.tokenizer has 300, so",
    ),
    (
        lambda path, ids: array(path, ids, "<f4"),
        IDS,
        r"a.bin: holds float32 of shape \(99,\); token ids are one dimension",
    ),
    (
        lambda path, ids: array(path, ids[None]),
        IDS,
        r"a.bin: holds int64 of shape \(1, 99\); token ids are one dimension",
    ),
    (
        lambda path, ids: np.save(path.open("wb"), np.array([{}]), allow_pickle=True),
        IDS,
        r"a.bin: cannot be read as .npy \(",
    ),
    (lambda path, ids: path.write_bytes(array(path, ids).read_bytes()[:-1]), IDS, r"a.bin: cannot be read as .npy \("),
    (lambda path, ids: path.write_bytes(b"odd"), IDS, r"a.bin: 3 bytes are no whole number of uint16 ids"),
    (
        lambda path, ids: path.write_bytes(shard(path, ids).read_bytes()[:-8]),
        IDS,
        r"counts 99 tokens, but 1214 bytes hold 95",
    ),
    (lambda path, ids: shard(path, ids, version=2), IDS, r"a.bin: a shard of version 2, where 1 is known"),
    (lambda path, ids: shard(path, ids, magic=20240522), IDS, r"a.bin: holds multiple-choice questions of llm.c"),
    (
        lambda path, ids: ids.astype("<u4").tofile(path),
        IDS,
        r"a.bin: every second uint16 is 0, as in a file of 32-bit ids",
    ),
    (lambda path, ids: path.mkdir(), IDS, r"a.bin: is a folder without a state.json, .* as in .*/a.bin/\*train\*.bin"),
]


@pytest.mark.parametrize(("write", "ids", "message"), WRONG, ids=[message[:40] for *_, message in WRONG])
def test_what_is_wrong_with_a_file_is_told(
    write: Write, ids: np.ndarray, message: str, text: TokenStore, tmp_path: Path
) -> None:
    write(tmp_path / "a.bin", ids)
    line = problem(tmp_path / "cache", text, tmp_path / "a.bin")
    assert line.startswith(f"{tmp_path}/a.bin: ")
    assert re.search(message, line)
    assert not list((tmp_path / "cache").glob("*/"))


def test_what_is_wrong_with_the_choice_of_files_is_told(text: TokenStore, tmp_path: Path) -> None:
    cache, path = tmp_path / "cache", headless(tmp_path / "a.bin", IDS)
    assert problem(cache, text, tmp_path / "b*.bin") == f"data.paths: {tmp_path}/b*.bin matches no file"
    both = problem(cache, text, path, validation_paths=[str(tmp_path / "*.bin")])
    assert both == f"data.validation_paths: {path} is a file of data.paths, too; leave it out of one"
    assert "data.separator=777: not among the 300 ids" in problem(cache, text, path, separator=777, separator_at="end")
    assert "data.separator=0: does not occur in" in problem(cache, text, path, **ENDS)
    renamed = path.rename(tmp_path / "a.dat")
    assert "if it holds uint16 ids and nothing else, rename it to end in .bin" in problem(cache, text, renamed)
    with pytest.raises(ValueError, match="give separator together with separator_at"):
        opened(cache, text, renamed, separator=0)
    few = headless(tmp_path / "few.bin", IDS[:1])
    assert "1 tokens in 1 documents are too few for two splits" in problem(cache, text, few)


def test_a_dataset_that_holds_something_else_is_told(text: TokenStore, tmp_path: Path) -> None:
    rows = {"ids": [[1, 2]], "input_ids": ["text"], "more": [[1, None]]}
    for name, column in rows.items():
        table = datasets.Dataset.from_dict({"ids" if name == "ids" else "input_ids": column})
        table.save_to_disk(tmp_path / name)
    datasets.DatasetDict({"test": table, "train": table}).save_to_disk(tmp_path / "dict")
    told = {name: problem(tmp_path / "cache", text, tmp_path / name) for name in (*rows, "dict")}
    assert "has no column 'input_ids', only ids; rename it" in told["ids"]
    assert "column 'input_ids' is string, no list of integers a row" in told["input_ids"]
    assert "column 'input_ids' has nulls; drop them" in told["more"]
    assert told["dict"].endswith("dict: is a DatasetDict; give the folder of one of its splits: test, train")


def test_remarks_name_what_may_be_a_mistake(
    text: TokenStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = headless(tmp_path / "a.bin", np.asarray(text.train.ids))
    data = tokens_data(tmp_path / "cache", text, path, separator=END, separator_at="start", validation_fraction=0.1)
    lines = summary(open_store(data)).splitlines()
    assert lines[1:3] == ["corpus      tokens, the ids are in the files below", lines[2]]
    assert lines[-1] == f"  {path}  0.02 MB"
    assert "data.separator_at=start: the files look as if it should be end: 0 stands there" in capfd.readouterr().err
    open_store(tokens_data(tmp_path / "cache", text, path, validation_fraction=0.1))
    assert "data.separator is null: a file is one document, in a dataset a row" in capfd.readouterr().err


def test_a_run_from_a_bin_is_the_run_from_its_text_and_resumes_exactly(workspace: Path, tmp_path: Path) -> None:
    text = open_store(load_config(workspace / "tiny.yaml").data, progress=False)
    paths = [
        headless(tmp_path / f"{name}.bin", np.asarray(getattr(text, name).ids)) for name in ("train", "validation")
    ]
    files = f"paths: [{paths[0]}], validation_paths: [{paths[1]}], separator: {text.eos_id}, separator_at: end"
    own = f"kind: tokens, {files}, tokenizer: {text.path}/tokenizer, sequence_length: 32, cache_dir: {tmp_path}/cache"
    common = [
        f"output_dir={tmp_path}",
        "train.steps=6",
        "checkpoint.every=3",
        "train.eval_every=3",
        "optimizer.warmup_steps=2",
    ]
    assert train(load_config(workspace / "tiny.yaml", [*common, "name=text"])) == 0
    config = load_config(workspace / "tiny.yaml", [*common, "name=own", f"data={{{own}}}"])
    assert train(config) == 0
    one, other = (rows_of(tmp_path / name) for name in ("text", "own"))
    keys = [key for key in one[0] if not key.startswith(("time/", "memory/", "throughput/"))]
    assert len(one) == 6
    assert [[row.get(key) for key in keys] for row in one] == [[row.get(key) for key in keys] for row in other]

    run = tmp_path / "own"
    shutil.rmtree(list_checkpoints(run)[-1])
    (run / "status.json").write_text('{"status": "failed", "step": 4, "reason": ""}')
    assert train(config) == 0
    again = rows_of(run)
    assert [[row.get(key) for key in keys] for row in one] == [[row.get(key) for key in keys] for row in again]
