"""What a configuration can choose by name, with its options: the project's own kinds and those of plug-ins.

python -m configs.list [SECTION ...] [--plugins FILE ...]
"""

from __future__ import annotations

from typing import Any

from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.imports import importing


def main() -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m configs.list", description="The kinds that a configuration can choose.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="head, objective, stress, ... (default: all)")
    parser.add_argument(
        "--plugins", nargs="+", action="extend", default=[], metavar="FILE", help="Python files with kinds of your own"
    )
    options = parser.parse_args()
    plugins = [name for name in options.plugins if name.endswith(".py")]
    options.sections += [name for name in options.plugins if name not in plugins]  # sections after --plugins
    with importing():
        from .kinds import TABLES
        from .load import import_plugins
        from .messages import nearest
    import_plugins(plugins)
    for section in options.sections:
        if section not in TABLES:
            raise InputError(f"{section}: no such section; there are {', '.join(TABLES)}{nearest(section, TABLES)}")
    for section in options.sections or TABLES:
        print(section)
        for kind, cls in TABLES[section].items():
            print("\n".join(kind_lines(kind, cls)))


def kind_lines(kind: str, cls: Any) -> list[str]:
    """A registered class and its options, a line each."""
    from .describe import first_line, keys_of

    lines = [f"  {kind:<20} {first_line(cls)}"]
    for key in keys_of(cls.Options):
        lines.append(f"    {key.name:<18} {key.type}; {key.default}{'. ' if key.meaning else ''}{key.meaning}")
    return lines


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
