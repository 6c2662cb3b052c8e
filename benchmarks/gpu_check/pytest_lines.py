"""A pytest plug-in: each test's result as a line, as soon as it is known, so that a killed run loses nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

LONGEST = 1500
"""Characters of a failure that are kept: its end, where the numbers are."""


def pytest_configure(config: pytest.Config) -> None:
    """Only the process that gathers the results writes them."""
    path = os.environ.get("GPU_CHECK_LINES")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Writer(Path(path)), "gpu-check-lines")


class _Writer:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = {}
        self.planned = False

    def _write(self, **line: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _plan(self, tests: Sequence[str]) -> None:
        if tests and not self.planned:
            self.planned = True
            self._write(table="planned_tests", tests=list(tests))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._plan([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        self._plan(ids)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(table="started_tests", test=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.when != "call" and report.passed:
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        self._write(
            table="tests",
            test=report.nodeid,
            outcome=report.outcome if report.when == "call" or report.skipped else f"failed in {report.when}",
            seconds=round(self.seconds[report.nodeid], 2),
            message=reason[-LONGEST:],
        )

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            message = report.longreprtext[-LONGEST:]
            self._write(table="tests", test=report.nodeid, outcome="failed in import", seconds=0.0, message=message)
