"""Reading files of lexical substitutions: SWORDS and CoInCo, recognised by their content, plain or gzip."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from pathlib import Path

from common.errors import InputError

from .coinco import load_coinco
from .substitutions import SubstitutionList
from .swords import KEYS, load_swords

_GZIP = b"\x1f\x8b"
_HEAD = 1 << 16  # bytes in which the format is recognised
_JSON_HEAD = re.compile(rf'^\s*\{{.*?"(?:{"|".join(KEYS)})"\s*:\s*\{{', re.DOTALL)
_XML_HEAD = re.compile(r"^\s*<.*?<(?:sent|targetsentence|tokens|token)[\s>]", re.DOTALL)


def is_substitution_file(path: str | Path) -> bool:
    """Whether the first bytes of ``path`` look like SWORDS JSON or CoInCo XML; False if they cannot be read, or only once."""
    if not os.path.isfile(path):  # noqa: PTH113  (Path.is_file raises for impossible names)
        return False
    try:
        head = _content(Path(path))[:_HEAD].decode("utf-8-sig", errors="replace")
    except (OSError, EOFError, zlib.error):
        return False
    return bool(_JSON_HEAD.match(head) or _XML_HEAD.match(head))


def load_substitutions(source: str) -> SubstitutionList:
    """The substitutions in the file ``source``: an item for every target that a model can predict from its left context.

    Left out and counted are targets without text before them, that are not a whole word after a space, that the sentence
    spells otherwise, that CoInCo's annotators marked as problematic, or whose candidates are all accepted or all rejected.
    Candidates equal to the target or its lemma, case aside, are dropped.
    Raises :class:`InputError` naming the file and the line or the item.
    """
    path = Path(source)
    try:
        text = _content(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; give SWORDS JSON or CoInCo XML") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path} cannot be read ({reason}); give SWORDS JSON or CoInCo XML") from error
    if text.lstrip().startswith("{"):
        return load_swords(path, text)
    if text.lstrip().startswith("<"):
        return load_coinco(path, text)
    raise InputError(f"{path} is neither SWORDS JSON nor CoInCo XML; give one of the two, plain or gzip")


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content.startswith(_GZIP) else content
