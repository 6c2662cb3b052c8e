"""No source file calls what runs code out of data: unpickling, unsafe YAML, evaluation of text, shells, code of strangers.

The scan reads syntax trees, so that an import under another name does not hide a call, and is itself tested on small snippets.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import ROOT

FOLDERS = (
    "analysis",
    "benchmarks",
    "common",
    "configs",
    "data",
    "model",
    "optim",
    "ranks",
    "record",
    "stability",
    "suite",
    "training",
)
SOURCES = sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])

MODULES = {"_pickle", "cPickle", "cloudpickle", "dill", "jsonpickle", "joblib", "marshal", "pickle", "shelve"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "builtins.compile"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load", "yaml.unsafe_load_all"),
    *("yaml.dump", "yaml.dump_all"),  # writes Python tags where safe_dump refuses
    *("pandas.read_pickle", "torch.save", "torch.hub.load", "torch.package.PackageImporter"),
}
PREFIXES = ("os.exec", "os.spawn", "yaml.Unsafe", "yaml.Full", "yaml.Loader")
METHODS = {"to_pickle", "read_pickle", "exec_module", "load_module", "extractall"}
REQUIRED = {"torch.load": ("weights_only", True)}
"""Calls that must state an option as a literal."""
ONLY = {"allow_pickle": False, "trust_remote_code": False, "shell": False, "weights_only": True}
"""Options that no call may state otherwise, nor leave to a variable."""
STATES_TRUST = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoProcessor")
"""transformers asks at a terminal whether to run a checkpoint's code where ``from_pretrained`` of these does not say no."""
WEIGHTS = ("AutoModel", "AutoModelForCausalLM")
"""transformers takes weights out of a pickle where ``from_pretrained`` of these does not ask for safetensors."""
EXCEPTIONS = {
    (
        "configs/load.py",
        "exec_module",
    ): "plugins: local files that the configuration names, the flag that asks for code",
    (
        "benchmarks/gpu_check/packages.py",
        "extractall",
    ): "wheels, which are code, into an empty folder; zipfile keeps to it",
}


def findings(source: str, file: str = "") -> Iterator[str]:
    """One line for each forbidden import, call and option in ``source``; ``file`` decides about exceptions."""
    tree = ast.parse(source)
    names = dict(_aliases(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"line {node.lineno}: imports {m}" for m in modules if m.partition(".")[0] in MODULES)
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            called = _dotted(node, names)
            if called in CALLS or called.startswith(PREFIXES):
                yield f"line {node.lineno}: uses {called}"
        if isinstance(node, ast.Call):
            yield from (f"line {node.lineno}: {problem}" for problem in _call_problems(node, names, file))


def _aliases(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """What each imported name stands for, as a dotted path."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name.partition(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else "?"


def _call_problems(call: ast.Call, names: dict[str, str], file: str) -> Iterator[str]:
    called = _dotted(call.func, names)
    options = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    if isinstance(call.func, ast.Attribute) and call.func.attr in METHODS and (file, call.func.attr) not in EXCEPTIONS:
        yield f"calls {call.func.attr}"
    for option, only in ONLY.items():
        if option in options and not _is(options[option], only):
            yield f"{option} is not {only}"
    if called in REQUIRED and not _is(options.get(REQUIRED[called][0]), REQUIRED[called][1]):
        yield f"{called} without {REQUIRED[called][0]}={REQUIRED[called][1]}"
    *_, owner, method = ["", "", *called.split(".")]
    if method == "from_pretrained" and owner in STATES_TRUST and "trust_remote_code" not in options:
        yield f"{owner}.from_pretrained does not say trust_remote_code=False"
    if method == "from_pretrained" and owner in WEIGHTS and not _is(options.get("use_safetensors"), True):
        yield f"{owner}.from_pretrained does not say use_safetensors=True"


def _is(value: ast.expr | None, literal: bool) -> bool:
    return isinstance(value, ast.Constant) and value.value is literal


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_file_runs_code_out_of_data(path: Path):
    assert list(findings(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())) == []


def test_every_exception_is_still_needed():
    for file, _ in EXCEPTIONS:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert list(findings(source, file)) == []
        assert list(findings(source, "elsewhere.py")) != []


BAD = [
    "import pickle",
    "import joblib as j",
    "from dill import loads",
    "import shelve, os",
    "from marshal import loads",
    "import torch\ntorch.load('x')",
    "import torch as t\nt.load('x', weights_only=False)",
    "from torch import load\nload('x', weights_only=flag)",
    "from torch import load as read\nread('x')",
    "import torch\ntorch.save({}, 'x')",
    "import numpy as np\nnp.load('x', allow_pickle=True)",
    "import numpy as np\nnp.load('x', allow_pickle=flag)",
    "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
    "from yaml import unsafe_load as safe_load\nsafe_load(text)",
    "import yaml\nyaml.full_load(text)",
    "import yaml\nread = yaml.unsafe_load",
    "import yaml\nyaml.dump(value)",
    "eval('1')",
    "def f():\n    exec(text)",
    "import builtins\nbuiltins.eval('1')",
    "code = compile(text, 'x', 'exec')",
    "__import__(name)",
    "import os\nos.system('ls')",
    "from os import system as s\ns('ls')",
    "import os\nos.execvp('ls', [])",
    "import subprocess\nsubprocess.run('ls', shell=True)",
    "import subprocess\nsubprocess.run('ls', shell=flag)",
    "import subprocess\nsubprocess.getoutput('ls')",
    "import tempfile\ntempfile.mktemp()",
    "import pandas as pd\npd.read_pickle('x')",
    "frame.to_pickle('x')",
    "spec.loader.exec_module(module)",
    "load(x, trust_remote_code=True)",
    "load(x, trust_remote_code=options.trust)",
    "from transformers import AutoTokenizer\nAutoTokenizer.from_pretrained(x)",
    "import transformers\ntransformers.AutoModelForCausalLM.from_pretrained(x, dtype='float32')",
    "from transformers import AutoModel\nAutoModel.from_pretrained(x, trust_remote_code=False)",
    "from transformers import AutoModel as A\nA.from_pretrained(x, trust_remote_code=False, use_safetensors=flag)",
]
GOOD = [
    "import json, numpy as np\nnp.load('x', allow_pickle=False)\njson.loads('{}')",
    "import torch\ntorch.load('x', weights_only=True)\nmodel.compile()\nmodel.eval()",
    "import yaml\nyaml.safe_load(text)\nyaml.safe_dump({})",
    "import re\nre.compile('x')",
    "import subprocess\nsubprocess.run(['ls'], shell=False)",
    "from transformers import AutoTokenizer\nAutoTokenizer.from_pretrained(x, trust_remote_code=False)",
    "from transformers import AutoModel\nAutoModel.from_pretrained(x, trust_remote_code=False, use_safetensors=True)",
]


@pytest.mark.parametrize("snippet", BAD)
def test_the_scan_finds(snippet):
    assert list(findings(snippet))


@pytest.mark.parametrize("snippet", GOOD)
def test_the_scan_lets_pass(snippet):
    assert list(findings(snippet)) == []


def test_the_scan_reads_the_whole_project():
    assert {path.name for path in SOURCES} >= {
        "train_lm.py",
        "run_suite.py",
        "load.py",
        "checkpoints.py",
        "page.py",
    }
    assert not [path for path in ROOT.iterdir() if path.is_dir() and _unscanned(path)]


def _unscanned(folder: Path) -> bool:
    """Whether a folder of the project has source that no other rule keeps out of it: results, caches and environments."""
    left_out = {"tests", "runs", "data_cache", "docs", "novels", "out", *FOLDERS}
    return not folder.name.startswith(".") and folder.name not in left_out and any(folder.rglob("*.py"))
