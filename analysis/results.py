"""Render the pages of results/ and their index, RESULTS.md, so that every measured number on a page is one that a command wrote.

    python -m analysis.results [--check | --collect STUDY]

A study is a folder of results/: study.yaml (:class:`Study`), templates (page.md.j2 gives README.md, any other NAME.md.j2 gives
NAME.md) and, if it was measured, summary.json. Run it in the root of the repository. --collect STUDY writes that study's
summary.json from the output of its commands, as its study.yaml says; then, as without options, all pages are rendered. --check
writes nothing: it names each page that is not what would be rendered, and exits 1 if there is one.

Templates see the fields of study.yaml, the values of summary.json and the function ``table``; a name that is neither is an error.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.files import write_json, write_text

from .show.tables import markdown_table

PAGES = {"page.md.j2": "README.md"}
"""What is rendered under another name than its own without .j2."""
INDEX = "RESULTS.md.j2"
EXIT_DIFFERS = 1


class Output(BaseModel):
    """A file that a study's commands write, and what summary.json takes of it."""

    model_config = ConfigDict(extra="forbid")

    file: str
    """.json, .jsonl (a list of its rows), or .md (its tables). Relative to the root of the repository."""
    values: list[str] = Field(min_length=1)
    """Of JSON: dotted paths, which go through every entry of a list on their way. Of Markdown: the first headings of tables."""


class Study(BaseModel):
    """What a study asked, what came out, and what made its numbers."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    title: str = Field(min_length=1)
    question: str = Field(min_length=1)
    verdict: str = Field(min_length=1)
    """One line; a template as the page is."""
    source: Literal["measured", "typed"]
    """measured: the numbers are in summary.json, as the commands wrote them. typed: the run directories are gone."""
    date: datetime.date
    commit: str | None = None
    """Of the code that was run, where it is known."""
    machine: str = Field(min_length=1)
    seeds: list[int]
    configs: list[str]
    commands: list[str] = Field(min_length=1)
    collect: dict[str, Output] = Field(default_factory=dict)
    """The parts of summary.json, by name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(
        prog="python -m analysis.results", description="Render the pages of results/ and RESULTS.md."
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="write nothing; exit 1 naming the pages that would change")
    action.add_argument(
        "--collect", metavar="STUDY", help="write results/STUDY/summary.json from its commands' output first"
    )
    options = parser.parse_args(arguments)
    root = Path()
    if options.collect:
        write_json(root / "results" / options.collect / "summary.json", collect(root, options.collect))
    pages = rendered(root)
    stale = differing(pages)
    for page in stale:
        if not options.check:
            write_text(page, pages[page])
        told = "is not what its template and summary give" if options.check else "written"
        print(f"{page}: {told}")
    if not stale:
        print(f"{len(pages)} pages are what their templates and summaries give")
    return EXIT_DIFFERS if options.check and stale else 0


def differing(pages: Mapping[Path, str]) -> list[Path]:
    """The pages whose file is missing or has another text."""
    return [page for page, text in pages.items() if not page.is_file() or page.read_text(encoding="utf-8") != text]


# ------------------------------------------------------------------------------------------------------------- the studies


def load_studies(root: Path) -> dict[str, Study]:
    """The studies of ``root``/results by the names of their folders. Raises InputError naming each mistake in a study.yaml."""
    files = sorted((root / "results").glob("*/study.yaml"))
    if not files:
        raise InputError(f"{root / 'results'} has no STUDY/study.yaml; run this in the root of the repository")
    return {file.parent.name: load_study(file) for file in files}


def load_study(file: Path) -> Study:
    """One study. Raises InputError naming each mistake."""
    try:
        study = Study.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); name a folder of results/ that has one") from error
    except yaml.YAMLError as error:
        raise InputError(f"{file} is no YAML: {error}") from error
    except ValidationError as error:
        raise InputError(*(f"{file}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from error
    if (study.source == "measured") != bool(study.collect):
        raise InputError(
            f"{file}: source is {study.source}; a measured study, and no other, says under collect where from"
        )
    return study


def load_summary(folder: Path, study: Study) -> dict[str, Any]:
    """summary.json of a measured study, nothing of a typed one. Raises InputError if it is missing, no JSON, or not expected."""
    file = folder / "summary.json"
    if study.source == "typed":
        if file.exists():
            raise InputError(f"{file}: its study is typed; remove it, or write source: measured")
        return {}
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); --collect {folder.name} writes it") from error
    except ValueError as error:
        raise InputError(f"{file} is no JSON ({error}); --collect {folder.name} writes it") from error
    expected = {part: output.values for part, output in study.collect.items()}
    if not isinstance(summary, dict) or {part: list(values) for part, values in summary.items()} != expected:
        raise InputError(f"{file} does not have the values that study.yaml collects; --collect {folder.name} writes it")
    return summary


def collect(root: Path, name: str) -> dict[str, Any]:
    """The summary of a study, from the files that its commands have written. Raises InputError naming what is missing."""
    study = load_study(root / "results" / name / "study.yaml")
    return {part: _taken(root / output.file, output.values) for part, output in study.collect.items()}


def _taken(file: Path, values: Sequence[str]) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".md":
            found: Any = markdown_tables(text)
        else:
            found = [json.loads(row) for row in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); run the study's commands first") from error
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}); run the study's commands again") from error
    try:
        return {value: found[value] if file.suffix == ".md" else pick(found, value.split(".")) for value in values}
    except (KeyError, TypeError) as error:
        raise InputError(f"{file} has no {error}, which study.yaml collects; correct its values") from error


def pick(value: Any, path: Sequence[str]) -> Any:
    """The value at the end of ``path``; of a list, that of each entry."""
    if not path:
        return value
    if isinstance(value, list):
        return [pick(entry, path) for entry in value]
    return pick(value[path[0]], path[1:])


def markdown_tables(text: str) -> dict[str, list[dict[str, str]]]:
    """The tables of a Markdown text by the heading of their first column: rows by heading; cells as they were printed."""
    tables = {}
    for block in re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE):
        header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
        tables[header[0]] = [dict(zip(header, row, strict=True)) for row in rows]
    return tables


# --------------------------------------------------------------------------------------------------------------- the pages


def rendered(root: Path) -> dict[Path, str]:
    """Every page and the index, by the file it belongs in. Raises InputError naming the template that cannot be rendered."""
    results = root / "results"
    environment = _environment(results)
    pages: dict[Path, str] = {}
    lines: dict[str, str] = {}
    for name, study in load_studies(root).items():
        values = study.model_dump() | load_summary(results / name, study) | {"name": name}
        values["verdict"] = _render(environment, f"{name}/study.yaml", values, study.verdict)
        for template in sorted((results / name).glob("*.md.j2")):
            page = template.with_name(PAGES.get(template.name, template.name.removesuffix(".j2")))
            pages[page] = _render(environment, f"{name}/{template.name}", values)
        lines[name] = _index_line(values)
    index = _render(environment, INDEX, {"line": lines})
    if unlisted := [name for name, line in lines.items() if line not in index]:
        raise InputError(f"{results / INDEX} has no line for {', '.join(unlisted)}; add {{{{ line[NAME] }}}}")
    pages[root / "RESULTS.md"] = index
    return pages


def _index_line(values: Mapping[str, Any]) -> str:
    link = f"[{values['title']}](results/{values['name']}/README.md)"
    cells = (link, values["question"], values["verdict"], values["source"])
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _environment(results: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(results),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 -- Markdown of our own files, not HTML of anybody's
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["table"] = _table
    environment.filters["number"] = number
    return environment


def _render(environment: Environment, name: str, values: Mapping[str, Any], text: str | None = None) -> str:
    try:
        template = environment.get_template(name) if text is None else environment.from_string(text)
        return template.render(values)
    except (TemplateError, TypeError, ValueError) as error:
        raise InputError(f"results/{name} cannot be rendered: {error}") from error


def number(value: float, form: str) -> str:
    """``value`` formatted by ``form``, with a minus sign in place of the hyphen."""
    return format(value, form).replace("-", "\N{MINUS SIGN}")


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of rows that have their cells under the same headings, without the last line's end."""
    return markdown_table(list(rows[0]), [[str(cell) for cell in row.values()] for row in rows]).rstrip("\n")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
