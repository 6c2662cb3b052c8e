"""Render the pages of results/ and their index RESULTS.md, so that every measured number on a page was written by a command.

    python -m analysis.results [--check | --collect STUDY]

Run it in the root of the repository. A study is a folder of results/ with study.yaml (:class:`Study`), templates (page.md.j2
renders to README.md, any other NAME.md.j2 to NAME.md) and, if it was measured, summary.json. --collect STUDY first writes that
study's summary.json from the output of its commands. --check writes nothing and exits 1 naming each page that is out of date.

Templates see the fields of study.yaml, the values of summary.json, the function ``table`` and the filters ``row`` and ``number``;
any other name is an error.
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

INDEX = "RESULTS.md.j2"
EXIT_DIFFERS = 1


class Output(BaseModel):
    """A file that a study's commands write, and what summary.json takes from it."""

    model_config = ConfigDict(extra="forbid")

    file: str
    """.json, .jsonl (a list of its rows), or .md (its tables). Relative to the root of the repository."""
    values: list[str] = Field(min_length=1)
    """Dotted paths in JSON, which pass through every entry of a list, or with key=value through those that have it; in Markdown,
    the first headings of tables."""


class Study(BaseModel):
    """The question, verdict and provenance of a study."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    title: str = Field(min_length=1)
    question: str = Field(min_length=1)
    verdict: str = Field(min_length=1)
    """One line; a template like the page."""
    source: Literal["measured", "typed"]
    """measured: the numbers come from summary.json. typed: they were copied by hand, as the run directories are gone."""
    date: datetime.date
    commit: str | None = None
    """Of the code that was run, if known; several with what was run with each."""
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
    stale = out_of_date(pages)
    for page in stale:
        if not options.check:
            write_text(page, pages[page])
        print(f"{page}: {'is not what its template and summary give' if options.check else 'written'}")
    if not stale:
        print(f"{len(pages)} pages are what their templates and summaries give")
    return EXIT_DIFFERS if options.check and stale else 0


def out_of_date(pages: Mapping[Path, str]) -> list[Path]:
    """The pages whose file is missing or out of date."""
    return [page for page, text in pages.items() if not page.is_file() or page.read_text(encoding="utf-8") != text]


# ------------------------------------------------------------------------------------------------------------- the studies


def load_studies(root: Path) -> dict[str, Study]:
    """The studies of ``root``/results by folder name. Raises InputError naming each mistake in a study.yaml."""
    files = sorted((root / "results").glob("*/study.yaml"))
    if not files:
        raise InputError(f"{root / 'results'} has no STUDY/study.yaml; run this in the root of the repository")
    return {file.parent.name: load_study(file) for file in files}


def load_study(file: Path) -> Study:
    """A study from its study.yaml. Raises InputError naming each mistake."""
    try:
        study = Study.model_validate(yaml.safe_load(_text(file, "name a folder of results/ that has one")))
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
    """summary.json of a measured study, {} for a typed one. Raises InputError if the file is missing, damaged or unexpected."""
    file = folder / "summary.json"
    if study.source == "typed":
        if file.exists():
            raise InputError(f"{file}: its study is typed; remove it, or write source: measured")
        return {}
    try:
        summary = json.loads(_text(file, f"--collect {folder.name} writes it"))
    except ValueError as error:
        raise InputError(f"{file} is no JSON ({error}); --collect {folder.name} writes it") from error
    expected = {part: output.values for part, output in study.collect.items()}
    if not isinstance(summary, dict) or {part: list(values) for part, values in summary.items()} != expected:
        raise InputError(f"{file} does not have the values that study.yaml collects; --collect {folder.name} writes it")
    return summary


def collect(root: Path, name: str) -> dict[str, Any]:
    """The summary of a study, from the output of its commands. Raises InputError naming what is missing."""
    study = load_study(root / "results" / name / "study.yaml")
    return {part: _collected(root / output.file, output.values) for part, output in study.collect.items()}


def _collected(file: Path, values: Sequence[str]) -> dict[str, Any]:
    text = _text(file, "run the study's commands first")
    try:
        if file.suffix == ".md":
            found: Any = markdown_tables(text)
        else:
            found = [json.loads(row) for row in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text)
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}); run the study's commands again") from error
    try:
        return {value: found[value] if file.suffix == ".md" else pick(found, value.split(".")) for value in values}
    except (KeyError, TypeError) as error:
        raise InputError(f"{file} has no {error}, which study.yaml collects; correct its values") from error


def _text(file: Path, remedy: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); {remedy}") from error


def pick(value: Any, path: Sequence[str]) -> Any:
    """The value at the end of ``path``; for a list, that of each entry, or of those that a part key=value names."""
    if not path:
        return value
    if isinstance(value, list):
        key, chosen, wanted = path[0].partition("=")
        if chosen:
            having = [entry for entry in value if key in entry]
            if not having:
                raise KeyError(key)
            return pick([entry for entry in having if str(entry[key]) == wanted], path[1:])
        return [pick(entry, path) for entry in value]
    return pick(value[path[0]], path[1:])


def markdown_tables(text: str) -> dict[str, list[dict[str, str]]]:
    """The tables of a Markdown text by their first heading, as rows of printed cells by heading."""
    tables = {}
    for block in re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE):
        header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
        tables[header[0]] = [dict(zip(header, row, strict=True)) for row in rows]
    return tables


# --------------------------------------------------------------------------------------------------------------- the pages


def rendered(root: Path) -> dict[Path, str]:
    """Every page and the index, by its file. Raises InputError naming a template that cannot be rendered."""
    results = root / "results"
    environment = _environment(results)
    pages: dict[Path, str] = {}
    lines: dict[str, str] = {}
    for name, study in load_studies(root).items():
        values = study.model_dump() | load_summary(results / name, study) | {"name": name}
        values["verdict"] = _render(environment, f"{name}/study.yaml", values, study.verdict)
        for template in sorted((results / name).glob("*.md.j2")):
            page = template.with_name("README.md" if template.name == "page.md.j2" else template.stem)
            pages[page] = _render(environment, f"{name}/{template.name}", values)
        link = f"[{values['title']}](results/{name}/README.md)"
        cells = [link, values["question"], values["verdict"], values["source"]]
        lines[name] = markdown_table(cells, []).partition("\n")[0]
    index = _render(environment, INDEX, {"line": lines})
    if unlisted := [name for name, line in lines.items() if line not in index]:
        raise InputError(f"{results / INDEX} has no line for {', '.join(unlisted)}; add {{{{ line[NAME] }}}}")
    pages[root / "RESULTS.md"] = index
    return pages


def _environment(results: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(results),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 -- Markdown of our own files, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["table"] = lambda rows: markdown_table(
        list(rows[0]), [[str(cell) for cell in row.values()] for row in rows]
    ).rstrip("\n")
    environment.filters["number"] = number
    environment.filters["row"] = row
    return environment


def _render(environment: Environment, name: str, values: Mapping[str, Any], text: str | None = None) -> str:
    try:
        template = environment.get_template(name) if text is None else environment.from_string(text)
        return template.render(values)
    except (TemplateError, TypeError, ValueError) as error:
        raise InputError(f"results/{name} cannot be rendered: {error}") from error


def row(rows: Sequence[Mapping[str, str]], name: str) -> Mapping[str, str]:
    """The row of a table whose first cell is ``name``. Raises ValueError if there is none."""
    for each in rows:
        if next(iter(each.values())) == name:
            return each
    raise ValueError(f"no row of the table is called {name}")


def number(value: float, form: str) -> str:
    """``value`` formatted by ``form``, with a true minus sign."""
    return format(value, form).replace("-", "\N{MINUS SIGN}")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
