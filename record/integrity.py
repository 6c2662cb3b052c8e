"""Whether a checkpoint's files are as they were written, by a manifest of their sizes and SHA-256 sums."""

import json
from pathlib import Path
from typing import Any

from common.files import digest_of, sha256_of

MANIFEST_FILE = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Write manifest.json, which lists every file of ``folder``."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_FILE
    }
    (folder / MANIFEST_FILE).write_text(_text(files), encoding="utf-8")


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
        listed = [(name, int(facts["bytes"]), str(facts["sha256"])) for name, facts in files.items()]
    except FileNotFoundError:
        return f"{MANIFEST_FILE} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST_FILE} is damaged"
    for name, size, sha256 in listed:
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
