"""What telemetry costs, in all and by family."""

import re

from benchmarks import paired, telemetry
from common.command import exit_status


def test_every_family_is_timed_against_none_and_all_against_their_parts(recipe, monkeypatch, capsys):
    for module in (paired, telemetry):
        monkeypatch.setattr(module, "BLOCK", 2)
    monkeypatch.setattr(
        "sys.argv", ["telemetry", "--families", "--config", str(recipe["path"]), "--steps", "12", *recipe["overrides"]]
    )
    assert not exit_status(telemetry.main)
    found = re.findall(r"(\S+(?: \S+)?) / (\S+(?: \S+)?), cpu +(\S+) \[", capsys.readouterr().out)
    assert {(above, below) for above, below, _ in found} == {
        ("on", "off"),
        *((f"only {family}", "off") for family in telemetry.FAMILIES),
        ("on", "without attention"),
        ("on", "without edge"),
    }
    assert all(float(ratio) > 0 for *_, ratio in found)
