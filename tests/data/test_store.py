"""The token store: what it holds, when it is built, and that it is whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from common.errors import InputError
from common.files import sha256_of
from data.prepare import summary
from data.store import open_store
from data.tokenizer import train_bpe

from ..conftest import wait_for
from .corpus import build, documents_of, sentences, text_data, write_jsonl

REPOSITORY = Path(__file__).parents[2]
OPEN = """
import json, sys
from data.corpora import DataConfig
from data.prepare import summary
from data.store import open_store
store = open_store(DataConfig(**json.loads(sys.argv[1])), progress=False)
print(json.dumps([str(store.path), sorted(sys.modules)]))
"""


def opening(cache_dir: Path, path: Path) -> subprocess.Popen[str]:
    """Start another process that opens the store of a file."""
    command = [sys.executable, "-c", OPEN, text_data(cache_dir, path).model_dump_json()]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_every_document_is_in_one_split_and_decodes_to_itself(tmp_path: Path) -> None:
    texts = [*sentences(400), "Œuvre 😀\twith <|endoftext|> in it", "   ", "\n"]
    store = build(tmp_path, write_jsonl(tmp_path / "a.jsonl", texts), validation_fraction=0.1)
    train, validation = (documents_of(store, split) for split in ("train", "validation"))
    assert Counter(train + validation) == Counter(text for text in texts if text.strip())
    assert 15 <= len(validation) <= 70
    assert store.train.ids.dtype == np.uint16
    assert store.vocab_size == 300 > max(store.train.ids.max(), store.validation.ids.max())


def test_copies_of_a_document_share_a_split(tmp_path: Path) -> None:
    store = build(tmp_path, write_jsonl(tmp_path / "a.jsonl", sentences(100) * 3), validation_fraction=0.2)
    assert not set(documents_of(store, "train")) & set(documents_of(store, "validation"))


def test_the_manifest_tells_what_the_store_holds(tmp_path: Path) -> None:
    texts = sentences(200)
    store = build(tmp_path, write_jsonl(tmp_path / "a.jsonl", texts))
    manifest = json.loads((store.path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest == store.manifest
    assert manifest["documents"] == 200
    assert manifest["bytes"] == sum(len(text.encode()) for text in texts)
    digests = b"".join(hashlib.sha256(text.encode()).digest() for text in texts)
    assert manifest["text_sha256"] == hashlib.sha256(digests).hexdigest()
    for name, split in (("train", store.train), ("validation", store.validation)):
        counts = manifest["splits"][name]
        assert counts["tokens"] == len(split.ids)
        assert counts["documents"] == len(split.document_starts) == int((split.ids == store.eos_id).sum())
        assert counts["sha256"] == sha256_of(store.path / f"{name}.bin")
    assert {path.name for path in store.path.iterdir()} == {
        *("manifest.json", "tokenizer", "train.bin", "train_documents.npy"),
        *("validation.bin", "validation_documents.npy"),
    }


def test_the_same_source_gives_the_same_bytes_anywhere(tmp_path: Path) -> None:
    stores = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        path = write_jsonl(tmp_path / name / "a.jsonl", sentences(300))
        stores.append(build(tmp_path / name / "cache", path))
    assert stores[0].path.name == stores[1].path.name
    for file in ("train.bin", "validation.bin", "train_documents.npy", "tokenizer/tokenizer.json"):
        assert (stores[0].path / file).read_bytes() == (stores[1].path / file).read_bytes()


def test_an_unchanged_source_is_not_tokenised_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = text_data(tmp_path / "cache", write_jsonl(tmp_path / "a.jsonl", sentences(100)))
    first = open_store(data)
    told = capfd.readouterr().err
    assert told.startswith(
        f"making the tokens of the text corpus, once for all runs and probes of it, in {first.path}\n"
    )
    assert "encoding" in told
    before = state(tmp_path / "cache")
    longer = data.model_copy(update={"sequence_length": 32})
    assert open_store(longer).path == first.path
    assert state(tmp_path / "cache") == before
    assert capfd.readouterr().err == ""


def test_opening_a_built_store_loads_no_heavy_library(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sentences(100))
    store = build(tmp_path / "cache", path)
    out, err = opening(tmp_path / "cache", path).communicate(timeout=120)
    assert err == ""
    opened, imported = json.loads(out)
    assert opened == str(store.path)
    assert not {"torch", "transformers", "tokenizers", "datasets", "pyarrow"} & set(imported)


def test_a_changed_source_is_noticed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sentences(100))
    first = build(tmp_path / "cache", path)
    write_jsonl(path, sentences(100, seed=1))
    os.utime(path, ns=(0, first.manifest["source"]["files"][0]["mtime_ns"]))
    second = build(tmp_path / "cache", path)
    assert second.path != first.path
    assert sorted(documents_of(second, "train") + documents_of(second, "validation")) == sorted(sentences(100, seed=1))


def test_a_file_of_known_size_and_time_is_not_hashed_again(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sentences(100))
    long_ago = (0, 10**18)
    os.utime(path, ns=long_ago)
    first = build(tmp_path / "cache", path)
    content = path.read_text()
    path.write_text(content.replace("the", "eht"))
    os.utime(path, ns=long_ago)
    assert build(tmp_path / "cache", path).path == first.path  # the price of trusting size and time, as documented
    path.touch()
    assert build(tmp_path / "cache", path).path != first.path


@pytest.mark.parametrize("options", [{"vocab_size": 310}, {"validation_fraction": 0.3}])
def test_other_options_are_another_store(tmp_path: Path, options: dict[str, float]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sentences(100))
    assert build(tmp_path / "cache", path).path != build(tmp_path / "cache", path, **options).path


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("fraction", [0.001, 0.499])
def test_both_splits_have_a_document(tmp_path: Path, count: int, fraction: float) -> None:
    texts = [text + " padding" * 30 for text in sentences(count, seed=count)]
    store = build(tmp_path, write_jsonl(tmp_path / "a.jsonl", texts), validation_fraction=fraction, vocab_size=300)
    splits = [documents_of(store, split) for split in ("train", "validation")]
    assert all(splits)
    assert sorted(" ".join(splits[0] + splits[1]).split()) == sorted(" ".join(texts).split())


@pytest.mark.parametrize("texts", [[], ["  "], ["x"]])
def test_a_corpus_too_small_for_two_splits_is_told(tmp_path: Path, texts: list[str]) -> None:
    train_bpe(iter(sentences(300)), 300, progress=False).save_pretrained(tmp_path / "tokenizer")
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    with pytest.raises(InputError, match=r"data: the corpus has [01] documents with text in them"):
        build(tmp_path / "cache", path, tokenizer=str(tmp_path / "tokenizer"))
    assert [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    words = {"<eos>": 0} | {f"w{number}": number for number in range(1, 70_000)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "words.json"))
    texts = ["w1 w65536 w69999", "w2"]
    store = build(tmp_path / "cache", write_jsonl(tmp_path / "a.jsonl", texts), tokenizer=str(tmp_path / "words.json"))
    assert store.train.ids.dtype == np.uint32
    assert store.vocab_size == 70_000
    assert sorted(" ".join(documents_of(store, "train") + documents_of(store, "validation")).split()) == sorted(
        " ".join(texts).split()
    )


@pytest.mark.parametrize("file", ["train.bin", "validation_documents.npy", "manifest.json"])
def test_a_damaged_store_is_told(tmp_path: Path, file: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sentences(100))
    damaged = build(tmp_path / "cache", path).path / file
    damaged.write_bytes(damaged.read_bytes()[:-3])
    with pytest.raises(InputError, match=rf"{file}.*delete") as caught:
        build(tmp_path / "cache", path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match=r"data.cache_dir="):
        build(tmp_path / "file", write_jsonl(tmp_path / "a.jsonl", sentences(10)))


@pytest.mark.parametrize("phase", ["documents.jsonl", "train.bin"])
def test_a_killed_build_leaves_nothing_that_opens(tmp_path: Path, phase: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sentences(25_000))
    cache = tmp_path / "cache"
    process = opening(cache, path)
    wait_for(lambda: list(cache.glob(f"*.building/{phase}")), process, f"it writes {phase}")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (remains,) = cache.glob("*.building")
    assert not remains.with_suffix("").exists()
    other = build(cache, write_jsonl(tmp_path / "b.jsonl", sentences(100)))
    assert {entry.name for entry in cache.iterdir() if entry.suffix != ".lock"} == {other.path.name}


def test_processes_at_once_build_one_store(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sentences(2000))
    processes = [opening(tmp_path / "cache", path) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len({json.loads(out)[0] for out, _ in outputs}) == 1
    built = ["tokenizers" in json.loads(out)[1] for out, _ in outputs]
    assert built.count(True) >= 1
    assert len([entry for entry in (tmp_path / "cache").iterdir() if entry.suffix != ".lock"]) == 1


def test_a_file_whose_name_is_not_unicode_is_read_and_known(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9.txt")
    (folder / name).write_text("\n".join(sentences(300)))
    data = text_data(tmp_path / "cache", folder)
    first = open_store(data)
    assert first.manifest["source"]["files"][0]["path"] == str(folder / name)
    assert "caf\\udce9.txt" in summary(first)
    before = state(tmp_path / "cache")
    capfd.readouterr()
    assert open_store(data).path == first.path
    assert state(tmp_path / "cache") == before
    (folder / name).write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"caf\\udce9.txt: line 1, byte 3 of the file"):
        open_store(data, progress=False)
