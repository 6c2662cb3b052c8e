"""Whether a checkpoint's files are as they were written, by a manifest of their sizes and SHA-256 sums."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import digest_of, replace_file, sha256_of

MANIFEST_FILE = "manifest.json"


def write_manifest(folder: Path, known: Mapping[str, dict[str, Any]] | None = None) -> None:
    """Write manifest.json, which lists every file of ``folder``. ``known``: entries of files that are not to be read again."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {name: (known or {}).get(name) or _facts(folder / name) for name in names if name != MANIFEST_FILE}
    # Not in place: a branch may have it under another name.
    text = _text(files).encode()
    replace_file(folder / MANIFEST_FILE, folder / f".{MANIFEST_FILE}.tmp", lambda file: file.write(text))


def listed(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of manifest.json."""
    files: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
    return files


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _text(files: dict[str, Any]) -> str:
    """A manifest, with a sum of its own."""
    return json.dumps({"files": files, "sha256": digest_of(files)}, indent=1) + "\n"


def damage(folder: Path) -> str | None:
    """What is wrong with the first file that is not as it was written; None if all are intact."""
    try:
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
        files: dict[str, Any] = json.loads(text)["files"]
        if text != _text(files):
            return f"{MANIFEST_FILE} is damaged"
        entries = [(name, int(facts["bytes"]), str(facts["sha256"])) for name, facts in files.items()]
    except FileNotFoundError:
        return f"{MANIFEST_FILE} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST_FILE} is damaged"
    for name, size, sha256 in entries:
        path = folder / name
        try:
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes and not {size:,}"
            if sha256_of(path) != sha256:
                return f"{name} is not what was written (its SHA-256 differs)"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None
