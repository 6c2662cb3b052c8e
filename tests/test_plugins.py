"""Plug-ins of every kind, as a user writes them: one file each (tests/plugins/), nothing else touched, and they last."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from analysis.probes.base import PROBES
from analysis.replay.__main__ import main as replay
from analysis.replay.rerun import open_replay, replay_to
from common.errors import InputError
from common.section import Choice
from configs.kinds import TABLES
from configs.load import import_plugins, load_config
from configs.recipe import dump_config
from model.chunked import chunked_loss
from record.finished import load_run
from record.metrics import describe
from stability.intervene.base import make_interventions
from tests.conftest import ROOT, events_of, rows_of
from train_lm import train

PLUGINS = ROOT / "tests" / "plugins"
ALL = f"plugins=[{', '.join(str(path) for path in sorted(PLUGINS.glob('[a-z]*.py')))}]"
USUAL = "interventions=[{kind: clip_to_usual, factor: 1.5}]"
NOISE = "{kind: white_noise, step: 14, steps: 2, std: 0.05}"


@pytest.fixture(autouse=True)
def registries_as_before():
    """What a test's plug-ins register is nobody else's: tests share a process."""
    before = [(table, dict(table)) for table in (*TABLES.values(), PROBES)]
    yield
    for table, kinds in before:
        table.clear()
        table.update(kinds)


@pytest.fixture
def start(recipe):
    """Train tiny.yaml with all plug-ins, as a new process would."""

    def run(*overrides):
        AcceleratorState._reset_state(reset_partial_state=True)
        config = load_config(recipe["path"], [*recipe["overrides"], ALL, *overrides])
        return train(config), Path(config.output_dir) / config.name

    return run


def lines_of_code(name):
    text = (PLUGINS / f"{name}.py").read_text(encoding="utf-8")
    return sum(bool(line.strip()) for line in text.splitlines())


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("clip_to_usual", 60),
        ("skip_step", 60),
        ("white_noise", 30),
        ("doubled_states", 30),
        ("copying", 50),
        ("cosine_head", 25),
    ],
)
def test_a_plug_in_is_short(name, most):
    assert lines_of_code(name) <= most


def test_an_intervention_resumes_and_replays_to_the_bit(start, tmp_path):
    overrides = (USUAL, f"stress=[{NOISE}]")
    assert start("name=whole", *overrides)[0] == 0
    whole = rows_of(tmp_path / "whole")
    assert min(row["intervention/clip_to_usual/scale"] for row in whole[5:]) < 0.5
    assert start("name=broken", *overrides)[0] == 0
    for folder in (tmp_path / "broken" / "checkpoints").iterdir():
        if folder.name > "step_00000020":
            shutil.rmtree(folder)
    (tmp_path / "broken" / "status.json").unlink()
    assert start("name=broken", *overrides)[0] == 0
    assert [e["event"] for e in events_of(tmp_path / "broken")].count("resume") == 1
    assert rows_of(tmp_path / "broken") == whole
    out = tmp_path / "out"
    replay([str(tmp_path / "whole"), "--step", "25", "--out", str(out), "--window", "3", "--counterfactual", "lr=3e-3"])
    found = json.loads((out / "explanation.json").read_text())
    assert found["reproduced"], found["disagreements"]
    scales = [whole[24][f"intervention/{name}/scale"] for name in ("clip_norm", "clip_to_usual")]
    assert found["clipped_by"] == pytest.approx(min(scales))
    (same,) = json.loads((out / "counterfactuals.json").read_text())  # the run's own rate: nothing changes
    assert same["changed"] == same["factual"]


def test_an_intervention_goes_back_with_the_run(start, tmp_path):
    """The state of an intervention is that of the checkpoint that a run goes back to."""
    fault = "stress=[{kind: corrupt_sequences, step: 65, steps: 3, sequences: 8, pattern: random}]"
    long = ["train.steps=80", "checkpoint.every=20", "interventions=[{kind: clip_to_usual}, {kind: rewind}]"]
    assert start("name=back", fault, *long)[0] == 0
    (back,) = [e for e in events_of(tmp_path / "back") if e["event"] == "rewind"]
    (first, last) = back["skipped"][0]
    assert start("name=without", f"data.skip_steps=[[{first}, {last}]]", fault, *long)[0] == 0
    assert rows_of(tmp_path / "back") == rows_of(tmp_path / "without")


def test_a_skipped_step_changes_nothing_and_the_run_lives(start, tmp_path):
    status, run = start("name=skipping", "interventions=[{kind: skip_above, above: 5.5}]", "checkpoint.every=5")
    assert status == 0
    rows = rows_of(run)
    skipped = [row["step"] for row in rows if row["intervention/skip_above/skipped"] == 1]
    assert skipped
    assert all(later - earlier > 1 for earlier, later in pairwise(skipped))
    for row in rows:
        assert (row["update_rms/embedding"] == 0) == (row["step"] in skipped)
    replayed = open_replay(load_run(str(run)), 30)
    assert list(replay_to(replayed, 30))
    state = replayed.optimizer.optimizer.state
    assert {int(s["step"]) for s in state.values()} == {30 - len(skipped)}, "a skipped step is none of Adam's"


def test_an_intervention_that_does_nothing_changes_nothing(start, tmp_path):
    assert (
        start("name=with", "interventions=[{kind: skip_above, above: 1.0e+9}, {kind: rewind, min_sigmas: 1.0e+9}]")[0]
        == 0
    )
    assert start("name=without")[0] == 0
    own = "intervention/skip_above/skipped"
    assert [{k: v for k, v in row.items() if k != own} for row in rows_of(tmp_path / "with")] == rows_of(
        tmp_path / "without"
    )


def test_a_run_of_plug_ins_alone(start, tmp_path):
    overrides = (
        *("data.kind=counting", "data.vocab_size=300", "data.up_to=3000", "optimizer.kind=sgd", "optimizer.lr=0.05"),
        *(
            "optimizer.schedule.kind=linear",
            "detection.detector=above_the_first",
            "head.kind=linear",
            "objective.kind=ce",
        ),
        "stress=[{kind: white_noise, step: 12, steps: 9, std: 3.0}, {kind: doubled_states, step: 3}]",
    )
    status, run = start("name=own", *overrides)
    assert status == 0
    rows = rows_of(run)
    assert rows[-1]["lr"] == 0.0
    assert {e["detector"] for e in events_of(run) if e["event"] == "spike"} == {"above_the_first"}
    assert rows[2]["hidden_norm/layer_00/mean"] > 1.5 * rows[1]["hidden_norm/layer_00/mean"]
    out = tmp_path / "out"
    replay([str(run), "--step", "13", "--out", str(out)])
    found = json.loads((out / "explanation.json").read_text())
    assert found["reproduced"], found["disagreements"]
    assert found["stress"] == ["noise of 3 in every gradient"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("interventions=[{kind: clip_to_usuall}]", "interventions.0.kind: unknown kind 'clip_to_usuall'; registered: "),
        (
            "interventions=[{kind: clip_to_usual, facter: 1}]",
            "interventions.0.facter: unknown key; did you mean",
        ),
        (
            "interventions=[{kind: clip_to_usual, factor: long}]",
            'interventions.0.factor: input should be a valid number, but is "long"',
        ),
        ("stress=[{kind: white_noise, step: 3}]", "stress.0.std: is required and has no default"),
        (
            "stress=[{kind: white_noise, step: 31, std: 1.0}]",
            "stress.0.step: 31 comes after the last step, train.steps=30",
        ),
        ("optimizer.kind=sdg", "optimizer.kind: unknown kind 'sdg'; registered: adamw, sgd"),
        ("optimizer.schedule.kind=liner", "optimizer.schedule.kind: unknown kind 'liner'"),
        (
            "interventions=[{kind: clip_norm, max_norm: 1.0}]",
            "optimizer.clip_norm clips already; set optimizer.clip_norm=null",
        ),
    ],
)
def test_a_mistake_about_a_plug_in_is_one_line(override, expected, recipe):
    with pytest.raises(InputError) as caught:
        load_config(recipe["path"], [*recipe["overrides"], ALL, override])
    (line,) = caught.value.problems
    assert expected in line


def write_plugin(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(
        f"from dataclasses import dataclass\nfrom typing import Literal\n{text}", encoding="utf-8"
    )
    return folder / name


TUPLE = """
from stability.intervene.base import INTERVENTIONS, Intervention
Mode = Literal["{modes}"]
@INTERVENTIONS.register("{kind}")
class Own{kind}(Intervention):
    @dataclass(frozen=True)
    class Options:
        betas: tuple[float, float] = (0.9, 0.95)
        mode: Mode = "{modes}"
"""


def test_options_of_any_type_and_two_files_of_one_name_last(start, recipe, tmp_path):
    """A tuple is a list in config.yaml and in a checkpoint; two plug-ins called p.py keep their own types."""
    one = write_plugin(tmp_path / "a", "p.py", TUPLE.format(kind="first", modes="x"))
    other = write_plugin(tmp_path / "b", "p.py", TUPLE.format(kind="second", modes="u"))
    own = [f"plugins=[{one}, {other}]", "interventions=[{kind: first}, {kind: second, mode: u}, {kind: first}]"]
    assert load_config(recipe["path"], [*recipe["overrides"], *own]).interventions[0].options["betas"] == [0.9, 0.95]
    assert start("name=lasting", "train.steps=20", *own)[0] == 0
    run = tmp_path / "lasting"
    (run / "status.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step_00000020")
    assert start("name=lasting", "train.steps=20", *own)[0] == 0
    assert [e["event"] for e in events_of(run)] == ["resume"]


def test_two_of_one_kind_are_two():
    import_plugins([str(PLUGINS / "skip_step.py")])
    choices = [Choice.model_validate({"kind": "skip_above", "above": above}) for above in (1.0, 2.0, 3.0)]
    made = make_interventions(choices)
    assert [(name, one.options.above) for name, one in made.items()] == [
        ("skip_above", 1.0),
        ("skip_above-2", 2.0),
        ("skip_above-3", 3.0),
    ]


BAD = {
    "a name that is none": ('INTERVENTIONS.register("z-clip")', "cannot name a kind"),
    "a name that is taken": (
        'INTERVENTIONS.register("clip_norm")(type("ClipNorm", (Intervention,), {}))',
        "is already registered",
    ),
    "a failure afterwards": (
        'INTERVENTIONS.register("half")(type("Half", (Intervention,), {})); 1 / 0',
        "ZeroDivisionError",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_plug_in_that_cannot_be_used_leaves_nothing_behind(bad, recipe, tmp_path):
    code, expected = BAD[bad]
    text = f"from stability.intervene.base import INTERVENTIONS, Intervention\n{code}\n"
    plugin = write_plugin(tmp_path / "bad", "bad.py", text)
    before = dict(TABLES["interventions"])
    with pytest.raises(InputError, match=expected):
        load_config(recipe["path"], [*recipe["overrides"], f"plugins=[{plugin}]"])
    assert TABLES["interventions"] == before


UNGUARDED = """
import torch
from optim.optimizers import OPTIMIZERS, Optimizer
@OPTIMIZERS.register("{kind}")
class Own{kind}(Optimizer):
    def build(self, model, lr):
        return torch.optim.{build}
"""


@pytest.mark.parametrize(
    ("kind", "build", "expected"),
    [
        ("rms", "RMSprop(model.parameters(), lr=lr)", "takes a step where found_inf is 1"),
        ("slow", "AdamW(model.parameters(), lr=lr, foreach=False)", "takes no found_inf"),
    ],
)
def test_an_optimizer_that_ignores_the_guard_is_refused(kind, build, expected, start, recipe, tmp_path):
    plugin = write_plugin(tmp_path / "own", "own.py", UNGUARDED.format(kind=kind, build=build))
    with pytest.raises(InputError, match=expected):
        start("name=unguarded", f"plugins=[{plugin}]", f"optimizer.kind={kind}")
    assert not (tmp_path / "unguarded").exists() or not list((tmp_path / "unguarded").glob("metrics*"))


def test_signals_are_those_that_the_run_will_have(recipe):
    load_config(
        recipe["path"],
        [
            *recipe["overrides"],
            ALL,
            USUAL,
            "detection.signals=[loss/nll, intervention/clip_to_usual/usual, intervention/clip_to_usual/scale]",
        ],
    )
    with pytest.raises(InputError, match="no metric 'intervention/clip_to_usual/scale'"):
        load_config(recipe["path"], [*recipe["overrides"], ALL, "detection.signals=[intervention/clip_to_usual/scale]"])


def test_another_optimizer_leaves_the_options_of_the_first_behind(recipe, capsys):
    overrides = [*recipe["overrides"], "optimizer.beta2=0.9", "optimizer.schedule={kind: wsd, decay_fraction: 0.5}"]
    (Path(recipe["path"]).parent / "own.yaml").write_text(dump_config(load_config(recipe["path"], overrides)))
    config = load_config(
        Path(recipe["path"]).parent / "own.yaml", [ALL, "optimizer.kind=sgd", "optimizer.schedule.kind=cosine"]
    )
    assert config.optimizer.options == {"momentum": 0.9}
    assert config.optimizer.schedule.options == {"min_ratio": 0.0}
    assert "optimizer.kind=sgd has no beta1, beta2, eps, weight_decay" in capsys.readouterr().err


TWICE = """
import torch
from record.metrics import Metric
from stability.intervene.base import INTERVENTIONS, Action, Intervention
@INTERVENTIONS.register("saying")
class Saying(Intervention):
    metrics = (Metric("norm", "1", "same", "what it saw"),)
    def on_gradient(self, seen):
        return Action(said={{"{said}": seen.gradient_norm}})
"""


def test_two_of_a_kind_say_what_they_say_under_their_own_names(start, tmp_path):
    plugin = write_plugin(tmp_path / "own", "own.py", TWICE.format(said="norm"))
    assert start("name=twice", f"plugins=[{plugin}]", "interventions=[{kind: saying}, {kind: saying}]")[0] == 0
    for row in rows_of(tmp_path / "twice"):
        assert row["intervention/saying/norm"] == row["intervention/saying-2/norm"] == row["grad_norm/total"]
    assert describe("intervention/saying-2/norm").meaning == "what it saw"


def test_what_an_intervention_says_and_does_not_declare_is_refused(start, tmp_path):
    plugin = write_plugin(tmp_path / "own", "own.py", TWICE.format(said="other").replace("saying", "telling"))
    with pytest.raises(InputError, match="telling says other, which its metrics do not declare"):
        start("name=undeclared", f"plugins=[{plugin}]", "interventions=[{kind: telling}]")


@pytest.mark.parametrize("name", ["scale", "skipped", "a/b"])
def test_a_metric_of_an_intervention_has_a_name_of_its_own(name, recipe, tmp_path):
    text = TWICE.format(said="norm").replace('Metric("norm"', f'Metric("{name}"').replace("saying", "naming")
    plugin = write_plugin(tmp_path / "own", "own.py", text)
    with pytest.raises(InputError, match=f"naming: {name} cannot be the name of a metric"):
        load_config(recipe["path"], [*recipe["overrides"], f"plugins=[{plugin}]", "interventions=[{kind: naming}]"])


SILENT = """
from stability.stress.base import Stress
from stability.stress.kinds import STRESSES
@STRESSES.register("silent")
class Silent(Stress):
    pass
"""


def test_a_stress_without_a_description_is_replayed_by_its_name_and_options(start, tmp_path, capsys):
    plugin = write_plugin(tmp_path / "own", "own.py", SILENT)
    assert start("name=silent", f"plugins=[{plugin}]", "stress=[{kind: silent, step: 12}]")[0] == 0
    replay([str(tmp_path / "silent"), "--step", "12", "--out", str(tmp_path / "out")])
    assert "silent with " in capsys.readouterr().out


def test_a_head_with_a_parameter_of_its_own_learns_it(start, tmp_path):
    """Its gradient through the chunked loss is autograd's, in float64; and a run trains it."""
    import_plugins([str(PLUGINS / "cosine_head.py")])
    head = TABLES["head"]["plain_cosine"](8, 40, TABLES["head"]["plain_cosine"].Options())
    torch.manual_seed(0)
    torch.nn.init.normal_(head.weight)
    head.reset_parameters()
    h_ND, y_N = torch.randn(30, 8), torch.randint(40, (30,))
    objective = TABLES["objective"]["ce"](TABLES["objective"]["ce"].Options())
    loss = chunked_loss(head, objective, h_ND, y_N).objective_sum / 30
    loss.backward()
    scale = head.log_scale.detach().double().requires_grad_()
    cosine_NV = torch.cosine_similarity(h_ND.double()[:, None], head.weight.detach().double()[None], dim=-1)
    expected = torch.nn.functional.cross_entropy(scale.exp() * cosine_NV, y_N)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert float(head.log_scale.grad) == pytest.approx(float(scale.grad), rel=1e-4)
    assert start("name=cosine", "head.kind=plain_cosine", "objective.kind=ce")[0] == 0
    losses = [row["loss/nll"] for row in rows_of(tmp_path / "cosine")]
    assert losses[-1] < losses[0]


FROZEN = """
import torch
from model import Head, register_head
@register_head("frozen")
class Frozen(Head):
    def __init__(self, hidden_size, vocab_size, options):
        super().__init__(hidden_size, vocab_size, options)
        self.temperature = torch.nn.Parameter(torch.ones(1))
    def logits(self, f_CD, w_VD):
        return self.temperature * (f_CD @ w_VD.T)
"""


def test_a_parameter_of_a_head_that_is_never_trained_is_told(start, tmp_path):
    plugin = write_plugin(tmp_path / "own", "own.py", FROZEN)
    with pytest.raises(InputError, match="no gradient reaches temperature; use it in features"):
        start("name=frozen", f"plugins=[{plugin}]", "head.kind=frozen")
    assert json.loads((tmp_path / "frozen" / "status.json").read_text())["status"] == "failed"
