from __future__ import annotations

from pathlib import Path

import pytest

from tests.analysis.corpus import write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpus of tests/analysis/corpus.py in text/; its store and models go beside it."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder / "text")
    return folder
