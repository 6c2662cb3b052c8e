from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from analysis.compare.temperature import VIEWS
from analysis.synonyms import __main__ as synonyms
from analysis.synonyms.metrics import KEYS
from common.command import exit_status
from common.errors import InputError
from tests.analysis.corpus import PAIRS
from tests.analysis.models import make_model
from tests.analysis.text import VOCABULARY, small_text
from tests.analysis.trained import write_pairs, write_training
from tests.conftest import called

NAMES = ("summary.json", "pairs.csv", "contexts.parquet")
SEED_ARM = {"first": "linear", "second": "metric"}


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Two arms of two seeds, and a guest whose tokens are others."""
    folder = tmp_path_factory.mktemp("compared")
    made = {
        name: [write_training(corpus, folder, name, seed=seed, steps=[1], head=head) for seed in (0, 1)]
        for name, head in SEED_ARM.items()
    }
    guest = folder / "guest"
    make_model("llama", VOCABULARY).save_pretrained(guest)
    small_text().tokenizer.save_pretrained(guest)
    return made | {"guest": [guest]}


def arguments(runs: dict[str, list[Path]], out: Path, *more: object) -> list[str]:
    options = ["--baseline", *runs["first"], "--candidate", *runs["second"], *runs["guest"], "--out", out, *more]
    return [str(option) for option in options]


@pytest.fixture(scope="module")
def done(runs: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, list[str]]:
    """What the command prints, the folder it writes to, and its options."""
    folder = tmp_path_factory.mktemp("results")
    options = ["--pairs", str(write_pairs(folder)), "--contexts-per-word", "6"]
    ended = called(synonyms.main, *arguments(runs, folder / "out", *options))
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, folder / "out", options


def strictly(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))
    assert isinstance(found, dict)
    return found


def test_the_command_compares_arms_over_seeds_with_a_guest_and_an_untrained_model(
    done: tuple[str, Path, list[str]],
) -> None:
    _, out, _ = done
    text = (out / "tables.txt").read_text()
    for words in ("second minus first", "guest minus first", "untrained minus first", "3 of 4 items", "river/zymurgy",
                  "The arms first, second differ in: head.kind (linear | metric)"):  # fmt: skip
        assert words in text
    found = strictly(out / "summary.json")
    labels = [(m["arm"], m["seed"], m["untrained"]) for m in found["models"]]
    assert labels == [
        ("first", 0, False), ("first", 1, False), ("second", 0, False), ("second", 1, False), ("guest", None, False),
        ("untrained", 0, True),
    ]  # fmt: skip
    temperatures = {m["label"]: m["temperatures"]["matched"] for m in found["models"]}
    assert temperatures["first_seed0"] == temperatures["first_seed1"] == 1.0
    assert temperatures["guest"] == "NaN"  # its entropy is of other tokens
    counts = found["counts"]
    assert (counts["items"], counts["items_left_out"], counts["contexts"]) == (3, 1, 36)
    assert [entry["name"] for entry in found["left_out"]] == ["river/zymurgy"]
    for arm in ("second", "guest", "untrained"):
        for view in VIEWS:
            row = found["differences"][arm]["all"][view]
            assert set(row) == set(KEYS)
            got = row["log_odds"]
            if (arm, view) == ("guest", "matched"):
                assert (got["n"], got["mean"]) == (0, "NaN")
                continue
            seeds = 2 if arm == "second" else 1
            assert (got["n"], got["clusters"]["seed"]) == (36 * seeds, seeds)
            assert got["low"] <= got["mean"] <= got["high"] and (got["smallest"] > 0) == (arm != "untrained")
            assert arm != "untrained" or got["mean"] == 0  # these runs are at their initialisation
            means = found["means"]
            if arm == "second":
                assert got["mean"] == pytest.approx(
                    means[arm][view]["log_odds"]["mean"] - means["first"][view]["log_odds"]["mean"], abs=1e-9
                )
            assert means[arm][view]["log_odds"]["items"] == found["signed_rank"][arm][view]["log_odds"]["items"] == 3


def test_the_files_say_the_same(done: tuple[str, Path, list[str]]) -> None:
    _, out, _ = done
    found = strictly(out / "summary.json")
    with (out / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["item"] for row in rows[:3]] == ["/".join(pair) for pair in PAIRS]
    for arm, views in found["means"].items():
        own = [row for row in rows if row["arm"] == arm]
        for view, means in views.items():
            for key in KEYS:
                values = [float(row[key if view == "raw" else f"{key}_{view}"] or "nan") for row in own]
                assert ("NaN" if means[key]["mean"] == "NaN" else np.mean(values)) == pytest.approx(means[key]["mean"])
    table = parquet.read_table(out / "contexts.parquet")
    contexts = found["counts"]["contexts"] + found["counts"]["shuffled_contexts"]
    assert table.num_rows == len(found["models"]) * contexts
    assert table["shuffled"].to_pylist().count(False) == len(found["models"]) * found["counts"]["contexts"]
    assert (out / "synonyms.png").read_bytes()[:4] == b"\x89PNG"


def test_the_same_command_writes_the_same_files(
    done: tuple[str, Path, list[str]],
    runs: dict[str, list[Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, out, options = done
    assert len(text.splitlines()) == 8  # of what, what is measured, a heading, four arms, and where the rest is
    synonyms.main(arguments(runs, tmp_path / "out", *options, "--tables"))  # strings hash otherwise in another process
    again = capsys.readouterr().out.replace(str(tmp_path / "out"), str(out))
    assert again == (out / "tables.txt").read_text() + "\n" + text
    for name in NAMES:
        assert (tmp_path / "out" / name).read_bytes() == (out / name).read_bytes()


def test_substitutes_judged_for_a_place_are_compared_with_rejected_ones(
    runs: dict[str, list[Path]], tmp_path: Path
) -> None:
    contexts = ["the river window big garden stone", "the paper market house candle fast river"]
    targets = [("c:0", contexts[0], "big", "ADJ"), ("c:1", contexts[1], "house", "NOUN")]
    judged = [("t:0", "large", 9), ("t:0", "silver", 0), ("t:0", "fast", 6), ("t:1", "home", 8), ("t:1", "winter", 0)]
    swords = {
        "contexts": {f"c:{i}": {"context": text} for i, text in enumerate(contexts)},
        "targets": {
            f"t:{i}": {"context_id": c, "target": word, "offset": text.index(word), "pos": pos}
            for i, (c, text, word, pos) in enumerate(targets)
        },
        "substitutes": {f"s:{i}": {"target_id": t, "substitute": word} for i, (t, word, _) in enumerate(judged)},
        "substitute_labels": {
            f"s:{i}": ["TRUE"] * yes + ["FALSE"] * (10 - yes) for i, (*_, yes) in enumerate(judged)
        },
    }  # fmt: skip
    path = tmp_path / "swords.json"
    path.write_text(json.dumps(swords))
    synonyms.main(arguments(runs, tmp_path / "out", "--pairs", path, "--no-untrained"))
    found = strictly(tmp_path / "out" / "summary.json")
    assert [m["arm"] for m in found["models"]] == ["first", "first", "second", "second", "guest"]
    assert found["counts"]["contexts"] == 2
    for key in ("gap", "auc_rejected", "log_odds_rejected"):
        assert found["means"]["first"]["raw"][key]["items"] == 2
        assert found["differences"]["second"]["all"]["matched"][key]["n"] == 4
    assert found["means"]["first"]["raw"]["auc_antonym"] == {"mean": "NaN", "items": 0}


def test_a_bad_command_ends_with_status_2_and_one_line_and_writes_nothing(
    runs: dict[str, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--baseline", runs["first"][0], runs["second"][0], "--candidate", runs["guest"][0], "--out", out]
    assert exit_status(lambda: synonyms.main([str(option) for option in options])) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: --baseline names several arms (first_seed0, second_seed0)")
    assert said.err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"--baseline": "guest", "--candidate": "guest"}, "give a run as one of them"),
        ({"--baseline": "first0", "--candidate": "first1"}, "differs from the baseline in nothing but the seed"),
        ({"--contexts-per-word": "0"}, "--contexts-per-word is 0; give a whole number from 1"),
        ({"--min-contexts": "0"}, "--min-contexts is 0"),
        ({"--contexts-per-word": "3"}, "--contexts-per-word 3 is below --min-contexts 5"),
        ({"--seed": "-1"}, "--seed is -1"),
        ({"--min-similarity": "2"}, "--min-similarity 2.0"),
        ({"--match-pos": "nouns"}, "--match-pos nouns: give wordnet"),
        ({"--pairs": "nowhere.csv"}, "nowhere.csv"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_nothing_is_written(
    runs: dict[str, list[Path]], tmp_path: Path, change: dict[str, str], expected: str
) -> None:
    names = {"first0": runs["first"][0], "first1": runs["first"][1], "guest": runs["guest"][0]}
    options: dict[str, object] = {"--baseline": runs["first"][0], "--candidate": runs["second"][0]}
    options |= {"--out": tmp_path / "out"} | {key: names.get(value, value) for key, value in change.items()}
    with pytest.raises(InputError) as error:
        synonyms.main([str(part) for option in options.items() for part in option])
    (problem,) = error.value.problems
    assert expected in problem and "\n" not in problem
    assert not (tmp_path / "out").exists()
