"""Extract the docstrings of a Python source file with ``ast``, without importing it.

Run as a script it is a worker of :mod:`data.pydoc`: a JSON list of paths on stdin, one JSON line per file on stdout. It
imports only the standard library, so a worker starts in some 30 ms. (A process pool would run the caller's ``__main__``
again in each worker, or fork a process that has threads.)
"""

import ast
import gc
import inspect
import json
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

MINIMUM_CHARACTERS = 20
"""Shorter docstrings ("See above.") are not worth training on."""

_ATTACHES_DOCSTRING = re.compile(r"_?add_(docstr|newdoc)")
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
"""Fields of a syntax tree that hold statements; expressions hold no docstrings, and skipping them saves much time."""
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def read_docstrings(path: Path) -> list[list[str]] | None:
    """The documents of one source file, each a list of cleaned docstrings in source order; None if it cannot be parsed.

    A file is one document, except ``pydoc_data/topics.py``, where each topic of the language reference is one. Docstrings
    attached by call (``add_docstr(obj, "...")``, ``add_newdoc(place, name, "...")``) belong to the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return None
    if path.parts[-2:] == ("pydoc_data", "topics.py"):
        return [[inspect.cleandoc(topic)] for topic in _string_constants(tree) if _is_english(topic)]
    found = sorted(_raw_docstrings(tree))
    return [[inspect.cleandoc(text) for _, _, text in found if _is_english(text)]]


def _is_english(text: str) -> bool:
    """Whether a text is long enough to keep and valid in UTF-8 (an escape may put half a surrogate pair in it)."""
    return len(text.strip()) >= MINIMUM_CHARACTERS and not any("\ud800" <= character <= "\udfff" for character in text)


def _raw_docstrings(tree: ast.Module) -> Iterator[tuple[int, int, str]]:
    """Yield (line, column, text) of each docstring, also of those attached by call, in any order."""
    blocks: list[ast.AST] = [tree]
    while blocks:
        node = blocks.pop()
        if isinstance(node, _DOCUMENTED) and node.body and isinstance(node.body[0], ast.Expr):
            constant = node.body[0].value
            if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                yield constant.lineno, constant.col_offset, constant.value
        for name in _BLOCKS:
            for child in getattr(node, name, ()):
                if isinstance(child, ast.Expr | ast.Assign):
                    if isinstance(child.value, ast.Call):
                        yield from _attached(child.value)
                elif hasattr(child, "body") or isinstance(child, ast.Match):
                    blocks.append(child)


def _attached(call: ast.Call) -> Iterator[tuple[int, int, str]]:
    """Yield the texts in a call that attaches docstrings; of a formatted or concatenated text its constant parts."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if not _ATTACHES_DOCSTRING.match(name):
        return
    arguments: list[ast.expr] = [*call.args, *(keyword.value for keyword in call.keywords)]
    while arguments:
        argument = arguments.pop()
        if isinstance(argument, ast.Tuple | ast.List):  # numpy: [("attribute", "its text"), ...]
            arguments += argument.elts
            continue
        text = "".join(_string_constants(argument))
        if any(character.isspace() for character in text):  # not the name of the documented object
            yield argument.lineno, argument.col_offset, text


def _string_constants(tree: ast.AST) -> list[str]:
    """The string constants below ``tree`` in source order, without dictionary keys and method arguments."""
    if isinstance(tree, ast.Constant):
        return [tree.value] if isinstance(tree.value, str) else []
    children: Iterable[ast.AST] = ast.iter_child_nodes(tree)
    if isinstance(tree, ast.Dict):
        children = tree.values
    elif isinstance(tree, ast.Call) and isinstance(tree.func, ast.Attribute):  # "text {name}".format(name="value")
        children = [tree.func.value]
    return [text for child in children for text in _string_constants(child)]


def main() -> None:
    """Read paths from stdin and write what each file holds to stdout, one JSON line per file, in the same order."""
    gc.disable()  # syntax trees have no cycles, and looking for them takes a third of the time
    for path in json.load(sys.stdin):
        print(json.dumps(read_docstrings(Path(path))))


if __name__ == "__main__":
    main()
