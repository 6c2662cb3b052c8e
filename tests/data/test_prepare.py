"""The command that builds a store."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from common.command import exit_status
from data.prepare import main

from ..conftest import ROOT, called
from .corpus import sentences, write_jsonl

RECIPE = ROOT / "configs" / "pydoc_micro.yaml"


def test_a_store_is_built_and_summarised(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", sentences(200))
    overrides = [
        "data.kind=text",
        f"data.paths=[{tmp_path}]",
        "data.vocab_size=300",
        f"data.cache_dir={tmp_path}/cache",
    ]
    finished = called(main, "--config", RECIPE, *overrides)
    assert finished.returncode == 0, finished.stderr
    (manifest,) = (tmp_path / "cache").glob("*/manifest.json")
    assert f"store       {manifest.parent}" in finished.stdout
    assert "in 200 documents" in finished.stdout
    assert "vocabulary  300 tokens" in finished.stdout


def test_a_mistake_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["data.kind=text", f"data.paths=[{tmp_path}/none.txt]", f"data.cache_dir={tmp_path}/cache"]
    monkeypatch.setattr(sys, "argv", ["prepare", "--config", str(RECIPE), *overrides])
    assert exit_status(main) == 2
    line = f"error: data.paths: {tmp_path}/none.txt matches no .txt, .json, .jsonl or .parquet file (.gz may follow)\n"
    assert capsys.readouterr().err == line
