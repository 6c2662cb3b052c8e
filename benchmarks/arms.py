"""Time and memory of the loss with each head and each objective, relative to a linear head with cross-entropy.

    python -m benchmarks.arms [--shapes N,D,V ...] [--rounds R] [--threads T] [--out FILE]

Every registered head with cross-entropy; every registered objective on its natural head, such as the metric one for the family
of TFSD; and some combinations that cost more than their parts. A turn is the loss of a model whose body hands over given hidden
states, and the gradients of these and of all other parameters; a teacher is another such model. Each arm takes its turns beside
one of the baseline in the same process: printed is the median over rounds of the ratio of their CPU times (on several threads
or a GPU, wall times) with the 95% interval of the median. Memory is the peak beyond the gradients. --out writes all as JSON.

Shapes: N tokens, V vocabulary, D width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GPT2Config
from transformers.modeling_outputs import BaseModelOutput

from analysis.show.tables import terminal_table
from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.files import write_json
from model import HEADS, OBJECTIVES, SwapHeadConfig, new_model
from model.objective_geometry import MEASURES
from model.objective_tfsd import TFSD, RaisedTFSD

from .loss import peak_bytes, shape
from .paired import FEWEST_BLOCKS, Ratio, ratio
from .turns import machine, take_turn

SHAPES = ["1024,64,1024", "1024,256,8192"]
HEAD_OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "linear": ({}, {"soft_cap": 30.0}),
    "metric": ({}, {"scale": "article"}, {"centroid_norm": "centred"}, {"abstain": True}),
    "cosine": ({}, {"learn_scale": True}, {"margin": 0.3}),
    "harmonic": ({}, {"exponent": "gpt2"}),
}
OBJECTIVE_OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "ce": ({}, {"label_smoothing": 0.1}),
    "tfsd_anchored": ({}, {"anchor": "largest"}),
    "distill": ({}, {"standardise": True}),
    "geometry": tuple({"form": form} for form in MEASURES),
}
"""Options whose cost is another than that of the defaults; other kinds are measured with their defaults alone."""


@dataclass(frozen=True)
class Arm:
    """A head and an objective, with the options that are not the defaults."""

    head: str
    objective: str
    head_options: Mapping[str, Any] = field(default_factory=dict)
    objective_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Kinds and options in a line."""
        return " + ".join(
            " ".join([kind, *(key if value is True else f"{key}={value}" for key, value in options.items())])
            for kind, options in ((self.head, self.head_options), (self.objective, self.objective_options))
        )


BASELINE = Arm("linear", "ce")
COSTLY = (
    Arm("metric", "confidence_penalty"),
    Arm("mixture", "ce", objective_options={"label_smoothing": 0.1}),
    Arm("mixture", "confidence_penalty"),
)
"""Combinations that cost more than their parts: rows with a bias, and a mixture's with a gradient that is not in factors."""


@dataclass(frozen=True)
class Cost:
    """What one arm costs at one shape."""

    arm: Arm
    seconds: float
    """Median of a turn."""
    time: Ratio
    """To the baseline."""
    extra_bytes: int
    """Peak beyond the gradients."""


def main() -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m benchmarks.arms", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="N,D,V", help="tokens, width, vocabulary")
    parser.add_argument("--rounds", type=int, help="turns of each arm (default: 9 to 25, by shape)")
    parser.add_argument("--threads", type=int, default=1, help="threads on CPU")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write the numbers as JSON")
    arguments = parser.parse_args()
    shapes = [shape(text) for text in arguments.shapes]
    if arguments.rounds is not None and arguments.rounds < FEWEST_BLOCKS:
        raise InputError(f"--rounds: must be at least {FEWEST_BLOCKS}, but is {arguments.rounds}")
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = []
    for N, D, V in shapes:
        rounds = arguments.rounds or max(9, min(25, int(2e10 / (N * D * V))))
        costs = measure(N, D, V, rounds, device, arguments.threads)
        print(f"{machine(device)}; N={N} D={D} V={V}, {rounds} rounds\n{table(costs, N * V)}\n", flush=True)
        found.append({"N": N, "D": D, "V": V, "rounds": rounds, "arms": plain(costs, N * V)})
    if arguments.out is not None:
        write_json(arguments.out, {"machine": machine(device), "baseline": BASELINE.name, "shapes": found})


def arms() -> Iterator[Arm]:
    """The baseline, every other head with cross-entropy, every other objective on its natural head, and what is costly."""
    yield BASELINE
    for kind in HEADS:
        yield from (arm for options in HEAD_OPTIONS.get(kind, ({},)) if (arm := Arm(kind, "ce", options)) != BASELINE)
    for kind in OBJECTIVES:
        for options in OBJECTIVE_OPTIONS.get(kind, ({},)):
            if (arm := Arm(natural_head(kind), kind, objective_options=options)) != BASELINE:
                yield arm
    yield from COSTLY


def natural_head(objective: str) -> str:
    """What an objective is made for."""
    cls = OBJECTIVES[objective]
    if cls.uses_auxiliary:
        return "dual"
    return "metric" if issubclass(cls, (TFSD, RaisedTFSD)) else "linear"


# ------------------------------------------------------------------------------------------------------------- measuring


class Given(nn.Module):
    """A body that hands over the same hidden states whatever it is asked."""

    def __init__(self, h_BTD: Tensor) -> None:
        super().__init__()
        self.h_BTD = nn.Parameter(h_BTD)

    def forward(self, **_: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.h_BTD)


def model_of(arm: Arm, h_BTD: Tensor, V: int) -> Any:
    """A new model of this arm on given hidden states, in training mode."""
    D = h_BTD.shape[-1]
    text = GPT2Config(n_layer=1, n_head=1, n_embd=D, vocab_size=V, bos_token_id=0, eos_token_id=0)
    taught = any(option.name == "teacher" for option in dataclasses.fields(OBJECTIVES[arm.objective].Options))
    objective = {"kind": arm.objective, **arm.objective_options, **({"teacher": "given"} if taught else {})}
    head = {"kind": arm.head, **arm.head_options}
    model: Any = new_model(SwapHeadConfig(text, head=head, objective=objective, taught_width=D), 0)
    model.model = Given(h_BTD)
    if taught:
        model.objective.teacher.use(model_of(BASELINE, h_BTD.flip(1), V), V)
    return model.train()


def turn_of(arm: Arm, h_BTD: Tensor, y_BT: Tensor, V: int) -> tuple[Callable[[], None], int]:
    """One turn of an arm, and the bytes of its gradients."""
    model = model_of(arm, h_BTD, V).to(h_BTD.device)
    parameters = list(model.parameters())

    def turn() -> None:
        loss = model(input_ids=y_BT, shift_labels=y_BT, skip_logits=True).loss
        torch.autograd.grad(loss, parameters, allow_unused=True)

    return turn, sum(p.numel() * p.element_size() for p in parameters)


def measure(N: int, D: int, V: int, rounds: int, device: torch.device, threads: int) -> list[Cost]:
    """The cost of every arm, the baseline first."""
    generator = torch.Generator().manual_seed(0)
    h_BTD = torch.randn(1, N, D, generator=generator).to(device)
    y_BT = torch.randint(0, V, (1, N), generator=generator).to(device)

    def seconds_of(turn: Callable[[], None]) -> float:
        cost = take_turn(lambda _: turn(), range(1), device)
        return cost.cpu if device.type == "cpu" and threads == 1 else cost.wall

    baseline, _ = turn_of(BASELINE, h_BTD, y_BT, V)
    found = []
    for arm in arms():
        turn, gradients = turn_of(arm, h_BTD, y_BT, V)
        turn()  # warm-up
        extra = max(0, peak_bytes(turn, device) - gradients)
        costs = functools.partial(seconds_of, turn), functools.partial(seconds_of, baseline)
        own, of_baseline = np.array([_pair(*costs, number) for number in range(rounds)]).T
        found.append(Cost(arm, float(np.median(own)), ratio(own, of_baseline), extra))
    return found


def _pair(own: Callable[[], float], other: Callable[[], float], number: int) -> tuple[float, float]:
    """Both costs, measured in an order that changes from round to round."""
    if number % 2:
        return own(), other()
    of_other = other()
    return own(), of_other


# --------------------------------------------------------------------------------------------------------------- results


def table(costs: Sequence[Cost], logits: int) -> str:
    """A line for each arm; ``logits``: N V."""
    header = ["arm", "ms", "time ratio [95%]", "memory, N x V floats", "memory ratio"]
    rows = [
        [
            *(one["name"], f"{one['milliseconds']:.1f}", str(cost.time)),
            *(f"{one['extra_nv_floats']:.3f}", f"{one['memory_ratio']:.2f}"),
        ]
        for cost, one in zip(costs, plain(costs, logits), strict=True)
    ]
    return terminal_table(header, rows)


def plain(costs: Sequence[Cost], logits: int) -> list[dict[str, Any]]:
    """The same as JSON, with more digits."""
    return [
        {
            "name": cost.arm.name,
            "head": {"kind": cost.arm.head, **cost.arm.head_options},
            "objective": {"kind": cost.arm.objective, **cost.arm.objective_options},
            "milliseconds": 1e3 * cost.seconds,
            "time_ratio": dataclasses.asdict(cost.time),
            "extra_bytes": cost.extra_bytes,
            "extra_nv_floats": cost.extra_bytes / (4 * logits),
            "memory_ratio": cost.extra_bytes / costs[0].extra_bytes,
        }
        for cost in costs
    ]


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
