"""A leading ~ in what a user gives is the home directory, and no folder of that name is made."""

from __future__ import annotations

import json
import os
import pwd
import re
from pathlib import Path

import pytest
import yaml

from analysis.replay.__main__ import main as replay
from common.command import ArgumentParser
from common.errors import InputError
from common.registry import checked_options
from configs.load import load_config
from configs.recipe import dump_config
from configs.schema import BodyConfig
from data.corpora import DataConfig
from data.hub import HubCorpus
from data.store import open_store
from suite.file import load_suite

REPOSITORY = Path(__file__).parents[1]
RECIPE = REPOSITORY / "configs" / "pydoc_micro.yaml"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_every_path_of_a_recipe_is_expanded(home: Path) -> None:
    (home / "plugin.py").write_text("")
    (home / "base.yaml").write_bytes(RECIPE.read_bytes())
    (home / "recipe.yaml").write_text("base: ~/base.yaml")
    overrides = [
        *("output_dir=~/runs", "data.cache_dir=~/cache", "plugins=[~/plugin.py]", "data.kind=text"),
        *("data.paths=[~/a.txt, ~/b/*.txt, c~/d.txt, ./~/e.txt]", "data.tokenizer=~/tokenizer", "data.vocab_size=null"),
    ]
    written = yaml.safe_load(dump_config(load_config(home / "recipe.yaml", overrides)))
    assert written["output_dir"] == f"{home}/runs"
    assert written["plugins"] == [f"{home}/plugin.py"]
    assert written["data"]["cache_dir"] == f"{home}/cache"
    assert written["data"]["tokenizer"] == f"{home}/tokenizer"
    assert written["data"]["paths"] == [f"{home}/a.txt", f"{home}/b/*.txt", "c~/d.txt", "./~/e.txt"]


def test_names_on_the_hub_stay_as_they_are(home: Path) -> None:
    def options(dataset: str) -> HubCorpus.Options:
        data = DataConfig(kind="hub", dataset=dataset, tokenizer="org/name", sequence_length=8, max_tokens=1000)
        return checked_options(HubCorpus, data.options)

    assert (options("org/na~me").dataset, options("org/na~me").tokenizer) == ("org/na~me", "org/name")
    assert options("~/copy").dataset == f"{home}/copy"
    assert BodyConfig(checkpoint="~/model").checkpoint == f"{home}/model"


def test_the_home_of_a_user_and_of_nobody(home: Path) -> None:
    user = pwd.getpwuid(os.getuid())
    assert load_config(RECIPE, [f"output_dir=~{user.pw_name}/runs"]).output_dir == f"{user.pw_dir.rstrip('/')}/runs"
    problem = "~no_such_user is no home directory here; if it is a file's name, write ./~no_such_user/x"
    for key in ("output_dir", "data.cache_dir"):
        with pytest.raises(InputError, match=f"^{re.escape(f'{key}: {problem}')}$"):
            load_config(RECIPE, [f"{key}=~no_such_user/x"])
    with pytest.raises(InputError, match=f"^{re.escape(f'plugins: {problem}')}$"):
        load_config(RECIPE, ["plugins=[~no_such_user/x]"])


def test_every_path_of_a_command_line_is_expanded(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser(prog="command")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--out")
    parser.add_argument("--config", type=Path, nargs="+", default=[Path("here")])
    parser.add_argument("--steps", type=int, default=1)
    given = parser.parse_args(["~/run", "a~/b", "key=~/c", "--out=~/results"])
    assert (given.runs, given.out) == ([f"{home}/run", "a~/b", "key=~/c"], f"{home}/results")
    assert (given.config, given.steps) == ([Path("here")], 1)
    assert parser.parse_args(["run", "--config", "~/a.yaml", "./~"]).config == [home / "a.yaml", Path("~")]
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["run", "--out=~no_such_user"])
    assert ended.value.code == 2
    problem = "~no_such_user is no home directory here; if it is a file's name, write ./~no_such_user"
    assert capsys.readouterr().err.endswith(f"command: error: argument --out: {problem}\n")


def test_a_suite_and_a_store_are_made_at_home(home: Path) -> None:
    Path("suite.yaml").write_text("recipe: ~/recipe.yaml\nout: ~/results\narms: {one: []}\n")
    suite = load_suite(Path("suite.yaml"))
    assert (suite.recipe, suite.out) == (f"{home}/recipe.yaml", f"{home}/results")
    data = DataConfig(kind="grammar", documents=10, sequence_length=8, cache_dir="~/cache")
    assert open_store(data, progress=False).path.parent == home / "cache"
    assert sorted(path.name for path in Path().iterdir()) == ["home", "suite.yaml"]


def test_a_plugin_that_comes_with_a_run_is_refused_by_any_name(home: Path) -> None:
    run = home / "run"
    run.mkdir()
    (run / "mine.py").write_text("raise SystemExit('it was imported')")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss/nll": 2.0}\n')
    (run / "status.json").write_text('{"status": "finished"}')
    facts = {"path": "store", "store": "store", "manifest_sha256": "0"}
    device = {"type": "cpu", "name": "cpu"}
    environment = {"device": device, "threads": 1, "world_size": 1, "packages": {"torch": "2"}, "data": facts}
    (run / "environment.json").write_text(json.dumps(environment))
    for plugin in (run / "mine.py", "~/run/mine.py", "home/run/mine.py"):
        (run / "config.yaml").write_text(f"name: run\nplugins: ['{plugin}']\n")
        with pytest.raises(InputError, match=r"mine.py is in the run directory; move it out if you trust it$"):
            replay([str(run), "--step", "1", "--out", "out"])
