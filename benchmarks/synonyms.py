"""How long the synonym probe of a model takes: contexts a second, and the memory it needs.

    python -m benchmarks.synonyms [--contexts N] [--vocabulary V] [--width D] [--layers L]

A model with fresh weights (1.9 million parameters by default) reads random text: windows of 128 tokens with ten places
each, and at each place a word, its synonym and five controls, a third of them of two tokens. Views, end-of-word probabilities,
ranks and entropies are those of analysis.synonyms; building the study and statistics are not counted.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence

import numpy as np
import torch
from transformers import GPT2Config

from analysis.synonyms.encode import Encoded, Tree
from analysis.synonyms.hidden_states import Reader
from analysis.synonyms.metrics import compute_metrics
from analysis.synonyms.score import score_words
from analysis.synonyms.study import CONTROLS, Candidate, Item, Role, Unit, assemble
from analysis.words.vocabulary import MAX_WORD_TOKENS, Vocabulary
from common.command import ArgumentParser, exit_status
from model import SwapHeadConfig, new_model

LENGTH = 128
PLACES = 10
"""Places of a window."""
UNITS = 1000
TEMPERATURES = (1.0, 1.1, 0.9)


class _Tokens(Vocabulary):
    """Tokens without text: every second one continues a word."""

    def __init__(self, size: int) -> None:
        self.continues = np.arange(size) % 2 == 1

    def __len__(self) -> int:
        return len(self.continues)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m benchmarks.synonyms", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--contexts", type=int, default=100_000)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args(arguments)
    sizes = {
        "vocab_size": options.vocabulary,
        "n_positions": LENGTH,
        "n_embd": options.width,
        "n_layer": options.layers,
    }
    body = GPT2Config(**sizes, n_head=4, activation_function="gelu_pytorch_tanh", bos_token_id=0, eos_token_id=0)
    config = SwapHeadConfig(text_config=body.to_dict(), head={"kind": "linear"}, objective={"kind": "ce"})
    model = new_model(config, seed=0).eval()
    encoded = random_study(options.contexts, options.vocabulary)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    compute_metrics(encoded.study, score_words(Reader(model, encoded, "random"), TEMPERATURES))
    seconds = time.perf_counter() - began
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        f"{options.contexts:,} contexts, {sum(p.numel() for p in model.parameters()):,} parameters, V = {options.vocabulary:,}, "
        f"{torch.get_num_threads()} threads: {seconds:.1f} s, {options.contexts / seconds:,.0f} contexts/s, "
        f"peak memory {peak:,.0f} MiB above the start"
    )


def random_study(contexts: int, vocabulary: int) -> Encoded:
    """Queries of random words at random places of random text."""
    rng = np.random.default_rng(0)
    units, trees = [], []
    for _ in range(UNITS):
        roles = [Role.WORD, Role.SYNONYM, *[Role.CONTROL] * CONTROLS]
        trees.append(_tree(rng, vocabulary, len(roles)))
        single = bool((trees[-1].depth_E[trees[-1].leaf_K[:2]] == 1).all())
        units.append(Unit(0, "word", tuple(Candidate(" word", role) for role in roles), single))
    windows = -(-contexts // PLACES)
    passages = [rng.integers(vocabulary, size=LENGTH) for _ in range(windows)]
    places = np.array(
        [
            (window, position, window)
            for window in range(windows)
            for position in rng.choice(LENGTH - 1 - MAX_WORD_TOKENS, PLACES, replace=False)
        ][:contexts]
    )
    queries = np.stack([np.arange(contexts), rng.integers(UNITS, size=contexts), np.zeros(contexts, np.int64)], axis=1)
    study = assemble("random", [Item("word", "", "")], [], units, passages, places, queries, _Tokens(vocabulary), 0)
    return Encoded(study, study.vocabulary, tuple(passages), study.position_C, tuple(trees))


def _tree(rng: np.random.Generator, vocabulary: int, candidates: int) -> Tree:
    """Candidates of one token or, every third time, of two."""
    parents: list[int] = []
    leaves: list[int] = []
    for _ in range(candidates):
        first = len(parents)
        long = rng.random() < 1 / 3
        parents += [-1, first] if long else [-1]
        leaves.append(len(parents) - 1)
    return Tree(
        token_E=rng.integers(vocabulary, size=len(parents)),
        parent_E=np.array(parents),
        depth_E=np.where(np.array(parents) < 0, 1, 2),
        leaf_K=np.array(leaves),
    )


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
