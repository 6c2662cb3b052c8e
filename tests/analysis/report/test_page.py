from __future__ import annotations

import json
import math
import re
from itertools import product
from pathlib import Path

import pytest
import yaml

from analysis.report.__main__ import main
from analysis.show.text import visible
from common.command import exit_status
from record.suite import PlannedRun, SuitePlan, write_plan
from tests.analysis.replay.test_page import HOSTILE
from tests.analysis.stability.made import config, curve, write_suite
from tests.analysis.written import spike, training_rows, write_run
from tests.conftest import ROOT

from .document import Document, check_is_harmless


def made(folder: Path, *given: object) -> Document:
    """The page that the command writes."""
    out = folder / "page.html"
    assert exit_status(lambda: main([*map(str, given), "--out", str(out)])) == 0
    return check_is_harmless(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three arms of four seeds: one is lower than the baseline, one like it."""
    levels = {"base": {0.01: 4.0}, "lower": {0.01: 3.5}, "alike": {0.01: 4.0}}
    folder = write_suite(tmp_path_factory.mktemp("suite") / "heads", levels, range(4))
    row = {"arm": "lower", "against": "base", "where": "calm", "verdict": "supported"}
    claim = {
        "claim": "no_spikes",
        "says": "It has none.",
        "test": "fewer",
        "verdict": "supported",
        "worth": "by construction",
        "probe": "calibration",
        "command": "python -m analysis.probes calibration heads",
        "evidence": [{"row": row}],
    }
    other = claim | {"claim": "sure", "verdict": "not shown", "worth": ""}
    (folder / "claims").mkdir()
    (folder / "claims" / "claims.json").write_text(json.dumps({"runs": 12, "planned": 12, "claims": [claim, other, 3]}))
    effect = {"mean": 0.25, "low": "NaN", "high": 0.5, "n": 4}
    wide, nothing = (
        {"mean": 1.23456, "low": 0.7, "high": 1.8, "n": 4},
        {"mean": "NaN", "low": None, "high": None, "n": 0},
    )
    probe = {
        "probe": "calibration", "meaning": "How sure.", "measures": {"ece": {"unit": "1", "meaning": "error", "along": None}},
        "arms": [{"arm": "base", "measure": "ece", "index": -1, "mean": effect, "difference": None}, None,
                 {"arm": "lower", "measure": "ece", "index": -1, "mean": wide, "difference": nothing}],
    }  # fmt: skip
    (folder / "probes" / "calibration").mkdir(parents=True)
    (folder / "probes" / "calibration" / "summary.json").write_text(json.dumps(probe))
    return folder


def test_a_suite_s_first_screen_says_what_is_shown_and_what_is_not(suite: Path, tmp_path: Path) -> None:
    document = made(tmp_path, suite)
    for words in (
        "Compared with base, a lower loss is shown for 1 of 2 arms and a higher one for none",
        "Of 2 claims of the article: 1 supported (no_spikes [by construction]); 1 not shown (sure).",
        "supported (by construction)", "The probe calibration, for no_spikes, sure, written into the suite's folder",
        "1.23 [0.70, 1.80]", "0.2500", "-: not defined for this arm's models, or not measured",
        "Lower final loss than base: lower (-0.5", "No difference in final loss from base is shown for alike",
        "3 arms (ways to train that are compared): base, lower, alike. The baseline is base.",
        "4 seeds each", "12 of 12 planned runs have ended.", "differ in head.kind; every other key is the same",
        "It has none.", "Probe calibration: How sure.", "no A/A control", "python -m analysis.stability",
    ):  # fmt: skip
        assert words in document.text, words
    assert document.text.count("python -m analysis.probes calibration heads") == 1
    assert "nan" not in document.text
    assert document.text.index("Lower final loss") < document.text.index("What was run")
    (section,) = document.data
    assert [group["name"] for group in section["groups"]] == ["base", "lower", "alike"]
    assert [line["kind"] for line in section["charts"][0]["lines"]] == (["run"] * 4 + ["strong"]) * 3


def test_arms_of_one_seed_are_told_by_what_happened_in_them(tmp_path: Path) -> None:
    plan = []
    for arm, scenario in product(("base", "limited"), ("calm", "jump")):
        bump = 2.0 * (arm == "base" and scenario == "jump")
        events = [spike("loss/nll", 40)] if bump else []
        name = f"{arm}_{scenario}"
        write_run(tmp_path / "heads" / name, curve(0, bump=bump), events=events, config=config(0, head={"kind": arm}))
        plan.append(PlannedRun(name, arm, scenario, 0.01, 0))
    write_plan(tmp_path / "heads", SuitePlan("base", None, tuple(plan)))
    document = made(tmp_path, tmp_path / "heads")
    for words in (
        "One seed each: under jump the loss of base spiked, that of limited did not",
        "calm: no spike of the loss. Validation loss at the end: base 4.000, limited 4.000.",
        "jump, base: spike of the loss: 2.00 above what was expected (9.00 times the noise), recovered, steps 40 to 44.",
        "jump, limited: no spike of the loss. Validation loss at the end: 4.000.",
        "Every arm has one seed",
    ):
        assert words in document.text, words
    assert "too few seeds" not in document.text[: document.text.index("Events")]
    first = document.data[0]["charts"][0]
    assert [mark["x"] for mark in first["marks"]] == [40], "the curves on the first screen are those with the spike"


def test_a_single_run_s_first_screen_says_how_it_went(tmp_path: Path) -> None:
    events = [spike("grad_norm/total", 40), spike("loss/nll", 60)]
    rows = training_rows(200)
    rows[99]["loss/nll"] = "NaN"
    run = write_run(tmp_path / "mine", rows, events=events, config={"train": {"steps": 200}})
    replay = {"run": "mine", "step": 60, "reproduced": True, "metrics": {"loss/nll": {"replayed": 7.0, "usual": 5.0}}}
    (run / "replay").mkdir()
    (run / "replay" / "explanation.json").write_text(json.dumps(replay))
    autopsy = {"run": "mine", "cause": "data", "reasons": ["it goes with the batch"], "spike": {"start_step": 60}}
    (run / "why").mkdir()
    (run / "why" / "autopsy.json").write_text(json.dumps(autopsy))
    document = made(tmp_path, run)
    for words in (
        "mine ran to its end, step 200; the loss and the gradient norm spiked",
        "The loss spiked once, the gradient norm once. The worst, steps 60 to 64: spike of the loss: 2.00 above",
        "Beyond its noise no change of the loss is shown", "Cause, by experiment: data", "it goes with the batch",
        "Step 60, taken again (agrees with the log): the loss 7.000, usually 5.000.",
        f"python -m analysis.autopsy {run} --step 40", "NaN or infinite from step 100",
    ):  # fmt: skip
        assert words in document.text + str(document.data), words
    titles = [alt.removesuffix(", over the steps").split(", ") for alt in document.attributes("alt")]
    assert (titles[0], len(titles)) == (["Training loss"], 2), "on the first screen alone"
    assert "Validation loss" in titles[1]
    assert "Training loss" not in titles[1]


def test_a_log_of_another_tool_s_first_screen_says_what_it_has(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text(
        "".join(f"iter {step}: loss {2 + 8 / (1 + step):.4f}, time 20.00ms, mfu 1.00%\n" for step in range(100))
    )
    document = made(tmp_path, log)
    assert "train is logged up to step 99; no spike was found" in document.text
    assert "console log of nanoGPT, 100 logged steps" in document.text
    assert "Last training loss: 2.080, lowest: 2.080." in document.text
    assert "python -m analysis.spikes" in document.text


def test_a_log_whose_loss_became_nan_says_so_first(tmp_path: Path) -> None:
    log = tmp_path / "train.csv"
    log.write_text("step,loss\n" + "".join(f"{step},{'nan' if step > 200 else 5 / step}\n" for step in range(1, 301)))
    document = made(tmp_path, log)
    assert "train is logged up to step 300; the loss became NaN or infinite" in document.text
    assert "The loss became NaN or infinite, 100 values in all (steps 201 to 300)." in document.text
    assert "Whether the loss still falls cannot be said: some of its values are NaN or infinite." in document.text


def test_several_logs_are_counted_by_what_broke_in_them(tmp_path: Path) -> None:
    for name, broken in (("whole", ()), ("short", (90,)), ("long", (70, 71, 95))):
        values = [f"{step},{'inf' if step in broken else 5 / step}\n" for step in range(1, 101)]
        (tmp_path / f"{name}.csv").write_text("step,loss\n" + "".join(values))
    document = made(tmp_path, *(tmp_path / f"{name}.csv" for name in ("whole", "short", "long")))
    assert "3 runs side by side: spikes were found in 0, NaN or infinite values in 2 (4 steps)" in document.text


def test_hostile_text_is_shown_and_does_nothing(tmp_path: Path) -> None:
    """In names, configurations, events, reasons, results of others and columns of logs."""
    bad = list(HOSTILE)
    config = {
        "head": {"kind": bad[0]},
        "objective": {"kind": bad[1]},
        "notes": [text for text in bad if text != "\ud800"],
    }
    events = [spike(bad[0], 10), {**spike("loss/nll", 20), "precursors": [{"signal": bad[0], "first_step": 9}]}]
    rows = [{key: row[key] for key in ("step", "loss/nll")} for row in training_rows(40)]
    run = write_run(tmp_path / "run", rows, events=events, config=config, status="failed")
    (run / "status.json").write_text(json.dumps({"status": "failed", "step": 40, "reason": "".join(bad)}))
    (run / "environment.json").write_text(json.dumps({"device": {bad[0]: bad}}))
    autopsy = {"run": "run", "cause": bad[0], "reasons": bad, "spike": {"start_step": 20}}
    (run / "autopsy.json").write_text(json.dumps(autopsy))
    log = tmp_path / "<img src=x onerror=alert(1)>.csv"
    log.write_text("step,loss,<script>\n" + "".join(f"{step},{step},1\n" for step in range(40)))
    document = made(tmp_path, run, log)
    for text in (text for text in bad if text.strip()):
        assert visible(text) in document.text
    names = [group["name"] for group in document.data[0]["groups"]]
    assert names == ["run", "&lt;img src=x onerror=alert(1)&gt;"]
    yaml.safe_load((run / "config.yaml").read_text())


# ------------------------------------------------------------------------------------------------------------------ its colours


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """As WCAG 2.2 defines it."""
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_all_text_stands_out_in_light_in_dark_and_on_paper() -> None:
    css = (ROOT / "analysis" / "report" / "page.css").read_text(encoding="utf-8")
    themes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)
    ]
    assert len(themes) == 3
    for theme, text, ground in product(themes, ("text", "faint", "link", "good", "bad", "open"), ("page", "panel")):
        assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground, theme)
    assert math.isclose(contrast("#000000", "#ffffff"), 21.0)
    rules = re.sub(r":root \{.*?\}", "", css, flags=re.S)
    assert set(re.findall(r"#[0-9a-f]{3,8}\b", rules)) == {"#ffffff"}, "a colour that is no variable"
