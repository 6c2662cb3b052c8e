"""Does a model know what it does not know? A threshold on the distance to the nearest class, and what lies beyond it.

    python -m analysis.unknown RUN... --out DIR [--fpr 0.05] [--windows N] [--bins N] [--seed N]

RUN is a run or a checkpoint directory of a model with a metric head. The threshold tau on min_k d_k, d_k = -z_k the squared
distance in the head's own unit, is calibrated on N windows of the validation split, so that the share --fpr of their positions is
flagged. Printed are tau, the share flagged of N other windows, of these with their tokens in random order, and of random tokens;
and how well the distance, and the largest probability, tell these from the text: the area under the ROC curve, 0.5 by chance. The
positions of a window are no independent observations. A checkpoint stays as it is: set model.config.unknown_distance to tau, or
train with checkpoint.unknown_fpr.

Writes DIR/unknown.json, which also has the share flagged by how frequent the next token is in the training text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from analysis.compare.arms import Member, check_positions, find_arms, load_member, load_tokenizer
from analysis.compare.foreign import FOREIGN, TEXT, known_and_foreign
from analysis.compare.ranking import auroc
from analysis.compare.text import Ids, RunText, open_text
from analysis.show.tables import terminal_table
from analysis.show.text import number
from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.files import write_json

Floats = npt.NDArray[np.float64]


class Scores(NamedTuple):
    """What speaks for each position (N,) being unknown: larger, the more."""

    distance_N: Floats
    """min_k d_k."""
    doubt_N: Floats
    """Minus the largest probability, that of the class besides the vocabulary left out."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m analysis.unknown", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run or checkpoint directory")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--fpr", type=float, default=0.05, help="share of validation positions flagged (default 0.05)")
    parser.add_argument("--windows", type=int, default=64, help="windows to calibrate on, and to measure (default 64)")
    parser.add_argument("--bins", type=int, default=5, help="bins of equal size by frequency (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the windows and the random tokens (default 0)")
    options = parser.parse_args(arguments)
    if not 0 < options.fpr < 1:
        raise InputError(f"--fpr is {options.fpr}; give a share between 0 and 1")
    for name, least in (("windows", 1), ("bins", 1), ("seed", 0)):
        if getattr(options, name) < least:
            raise InputError(f"--{name} is {getattr(options, name)}; give a whole number from {least}")
    arms = find_arms(options.runs)
    text = open_text(arms)
    calibrated_BT, measured, next_BT = known_and_foreign(text, options.windows, options.seed)
    count_N = text.training_counts()[next_BT].ravel()
    found = {
        member.label: _measure(member, text, calibrated_BT, measured, count_N, options.fpr, options.bins)
        for arm in arms
        for member in arm.members
    }
    write_json(options.out / "unknown.json", {"fpr": options.fpr, "windows": len(calibrated_BT), "models": found})
    print(_table(found))
    print(f"written to {options.out}: unknown.json")


def _measure(
    member: Member, text: RunText, calibrated_BT: Ids, measured: dict[str, Ids], count_N: Ids, fpr: float, bins: int
) -> dict[str, Any]:
    """What is written of one model. Raises InputError for one without distances or with another tokenizer."""
    import torch

    from model.unknown import threshold_at

    model = load_member(member)
    if not getattr(getattr(model, "lm_head", None), "bounded", False):
        raise InputError(f"{member.label}: its head has no distances to its classes; name runs with head.kind=metric")
    if load_tokenizer(member).get_vocab() != text.tokenizer.get_vocab():
        raise InputError(f"{member.label}: its tokenizer is not that of the text; compare models with one tokenizer")
    check_positions(model, member.label, calibrated_BT.shape[1])
    tau = threshold_at(torch.from_numpy(_scores(model, calibrated_BT).distance_N), fpr)
    saved = model.config.unknown_distance
    scores = {name: _scores(model, x_BT) for name, x_BT in measured.items()}
    known = scores[TEXT]
    return {
        "tau": tau,
        "saved_tau": saved,
        "flagged": {name: float((s.distance_N > tau).mean()) for name, s in scores.items()},
        "flagged_by_saved": saved and {name: float((s.distance_N > saved).mean()) for name, s in scores.items()},
        "auroc_distance": {name: auroc(known.distance_N, scores[name].distance_N) for name in FOREIGN},
        "auroc_probability": {name: auroc(known.doubt_N, scores[name].doubt_N) for name in FOREIGN},
        "by_frequency": [
            {"least": int(count_N[at].min()), "most": int(count_N[at].max()), "flagged": float(far)}
            for at in np.array_split(np.argsort(count_N, kind="stable"), min(bins, len(count_N)))
            for far in [(known.distance_N[at] > tau).mean()]
        ],
    }


def _scores(model: Any, x_BT: Ids) -> Scores:
    """The scores of all positions of these windows, a window at a time."""
    import torch

    from model.unknown import nearest_distances

    def both(head: Any, f_TD: Any) -> Any:
        p_TV = head.class_logits(f_TD).double().softmax(1)[:, : head.n_classes]
        return torch.stack([nearest_distances(head, f_TD, len(f_TD)).double(), -p_TV.amax(1)])

    with torch.no_grad():
        parts = [
            model.lm_head(model.model(input_ids=x_1T, use_cache=False).last_hidden_state, both).cpu()
            for x_1T in torch.from_numpy(x_BT).to(model.device).split(1)
        ]
    return Scores(*torch.cat(parts, dim=1).numpy())


def _table(found: dict[str, dict[str, Any]]) -> str:
    heading = ["model", "tau", "saved", *(f"flagged: {name}" for name in (TEXT, *FOREIGN))]
    heading += [f"AUROC {score}: {name}" for score in ("distance", "probability") for name in FOREIGN]
    rows = [
        [
            label,
            number(one["tau"]),
            number(one["saved_tau"]),
            *(f"{one['flagged'][name]:.3f}" for name in (TEXT, *FOREIGN)),
            *(f"{one[f'auroc_{score}'][name]:.3f}" for score in ("distance", "probability") for name in FOREIGN),
        ]
        for label, one in found.items()
    ]
    return terminal_table(heading, rows)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
