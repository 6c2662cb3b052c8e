"""The docstring corpus: what is read, what is left out, and that nothing is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import InputError
from data.corpora import DataConfig
from data.docstrings import read_docstrings
from data.pydoc import PACKAGES, STANDARD_LIBRARY, PydocCorpus, installed_packages

REPOSITORY = Path(__file__).parents[2]
LONG = "A paragraph about tensors that is long enough to count as repeated when it comes a second time."


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package whose import fails, with tests, vendored code, duplicates and a file that is not Python."""
    files = {
        "__init__.py": '"""The package explains itself here."""\nraise RuntimeError("imported")\n',
        "a.py": f'''
class Widget:
    """A widget that does something useful.

    Args:
        size: indented below its heading.
    """

    def run(self):
        """Too short."""
        if True:
            def inner():
                """An inner function within a branch."""

    async def later(self):
        """Runs  the widget
        some other time."""

def f():
    """{LONG}

    >>> f()
    42

    And a closing remark about f.
    """
''',
        "b.py": f'''
def g():
    """Runs the widget some other time."""

def h():
    """{LONG}

    Only this remark about h is new.
    """
''',
        "attached.py": '''
add_docstr(torch.abs, r"""
abs(input) -> Tensor

Computes the {name} of each element.""".format(**{"name": "absolute value"}) + " In place too.")
norm = _add_docstr(linalg.norm, r"""Computes a norm of its argument.""")
add_newdoc("package.core", "ndarray", [("shape", """Tuple of the dimensions of an array.""")])
unrelated("This text documents nothing at all.")
''',
        "template.py": "def {{ name }}(: pass\n",
        "latin.py": '"""A caf\xe9 without a coding line."""\n',
        "surrogate.py": '"""Half a pair of surrogates, \\ud800, is no text."""\n',
        "test_a.py": '"""A test file has nothing to say."""\n',
        "tests/helper.py": '"""Neither have the helpers of tests."""\n',
        "_vendor/other.py": '"""Nor the code of other people."""\n',
    }
    root = tmp_path / "package"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode("latin-1"))
    return root


def corpus(packages: dict[str, Path] | None = None, **options: int) -> PydocCorpus:
    data = DataConfig(kind="pydoc", sequence_length=16, vocab_size=300, **options)
    return PydocCorpus(PydocCorpus.Options(**data.options), data, packages)


def documents(package: Path, **options: int) -> tuple[list[str], dict[str, int]]:
    docstrings = corpus({"package": package}, **options)
    texts = list(docstrings.documents(progress=False))
    return texts, docstrings.describe()["packages"]["package"]


def paragraphs(texts: list[str]) -> set[str]:
    return {" ".join(paragraph.split()) for text in texts for paragraph in text.split("\n\n")}


def test_documents_are_the_docstrings_of_each_file_in_order(package: Path) -> None:
    texts, _ = documents(package)
    assert texts == [
        "The package explains itself here.",
        "A widget that does something useful.\n\nArgs:\n    size: indented below its heading.\n\n"
        "An inner function within a branch.\n\nRuns  the widget\nsome other time.\n\n"
        f"{LONG}\n\nAnd a closing remark about f.",
        "abs(input) -> Tensor\n\nComputes the {name} of each element. In place too.\n\n"
        "Computes a norm of its argument.\n\nTuple of the dimensions of an array.",
        "Only this remark about h is new.",
    ]


def test_counts_are_of_what_was_read(package: Path) -> None:
    texts, counts = documents(package)
    assert counts == {
        "version": None,
        "files": 7,
        "files_not_parsed": 2,
        "documents": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
    }


def test_a_reader_that_is_killed_is_told_in_one_line(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system kills it that is out of memory."""
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    with pytest.raises(InputError, match=r"ended: killed by SIGKILL: probably out of memory; run again$"):
        documents(package)


def test_fewer_documents_are_some_of_all_and_always_the_same(package: Path) -> None:
    everything, _ = documents(package)
    some, counts = documents(package, max_documents=2)
    assert len(some) == counts["documents"] == 2
    assert some == documents(package, max_documents=2)[0]
    assert paragraphs(some) < paragraphs(everything)
    assert corpus(max_documents=2).identity() != corpus(max_documents=3).identity()


def test_each_topic_of_the_language_reference_is_a_document(tmp_path: Path) -> None:
    file = tmp_path / "pydoc_data" / "topics.py"
    file.parent.mkdir()
    file.write_text(
        "topics = {'assert': 'The assert statement\\nis a convenient way.', 'if': 'The if statement branches.'}"
    )
    assert read_docstrings(file) == [["The assert statement\nis a convenient way."], ["The if statement branches."]]


@pytest.mark.parametrize(
    ("package", "file", "text"),
    [
        ("torch", "_torch_docs.py", "Computes the absolute value of each element in :attr:`input`."),
        ("numpy", "_core/_add_newdocs.py", "Tuple of array dimensions."),
    ],
)
def test_docstrings_attached_by_call_are_found_where_they_are(package: str, file: str, text: str) -> None:
    ((*docstrings,),) = read_docstrings(installed_packages()[package] / file) or []
    assert any(text in docstring for docstring in docstrings)


def test_installed_packages_are_found_without_importing_them() -> None:
    code = (
        "import json, sys; from data.pydoc import installed_packages; before = set(sys.modules); "
        "print(json.dumps([list(installed_packages()), sorted(set(sys.modules) - before)]))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60
    )
    found, imported = json.loads(finished.stdout)
    assert {STANDARD_LIBRARY, "torch", "numpy"} <= set(found)
    assert not set(imported) & set(PACKAGES)


def test_identity_names_every_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = corpus().identity()
    assert list(before["versions"]) == list(installed_packages())
    assert all(before["versions"].values())
    newer = tmp_path / "torch-99.0.dist-info"
    newer.mkdir()
    (newer / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 99.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert corpus().identity()["versions"]["torch"] == "99.0"
