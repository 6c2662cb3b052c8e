"""Taking one training step apart: which sequences, tokens, parameters and layers it was made of.

Shapes: B sequences, T positions, V vocabulary, D width, K the tokens held most probable. Everything is measured in evaluation
mode (no dropout) on one process, so that the sequences' gradients add up to the step's where there is no dropout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model import blocks, final_norm
from stability.measure.norms import GroupNorms, tensor_norms

from .explanation import Layer, MovedEmbedding, Sequence, Token, TokenTable

TOP = 3


@dataclass(frozen=True)
class SequenceGradients:
    """The term of each sequence in the gradient of the step's loss."""

    grad_norms: list[float]
    alignments: list[float]
    group_grad_norms: list[dict[str, float]]
    tokens: TokenTable


def sequence_gradients(model: Any, group_norms: GroupNorms, x_BT: Tensor, y_BT: Tensor) -> SequenceGradients:
    """Gradient norm of each sequence, in all and by group, its cosine with the whole gradient, and the losses of its tokens.

    Two backward passes per sequence: the first sums the gradient, the second compares each sequence with it. No gradient is
    left behind.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    valid = (y_BT != -100).sum()
    rows = range(len(x_BT))
    with _evaluating(model):
        whole: list[Tensor] = [torch.zeros_like(p) for p in parameters]
        for row in rows:
            torch._foreach_add_(whole, _gradient(model, parameters, x_BT[row], y_BT[row], valid)[0])
        whole_norm = float(group_norms(tensor_norms(whole))[1])
        norms, alignments, groups, losses = [], [], [], []
        for row in rows:
            gradient, of_tokens = _gradient(model, parameters, x_BT[row], y_BT[row], valid)
            by_group, norm = group_norms(tensor_norms(gradient))
            products = torch._foreach_mul(gradient, whole)
            product = float(torch.stack([p.sum(dtype=torch.float64) for p in products]).sum())
            norms.append(float(norm))
            scale = norms[-1] * whole_norm
            alignments.append(product / scale if scale > 0 else 0.0)
            groups.append(dict(zip(group_norms.names, by_group.tolist(), strict=True)))
            losses.append(of_tokens)
    return SequenceGradients(norms, alignments, groups, _token_table(y_BT, losses))


def _gradient(
    model: Any, parameters: list[Tensor], x_T: Tensor, y_T: Tensor, valid: Tensor
) -> tuple[list[Tensor], dict[str, Tensor]]:
    out = model(
        input_ids=x_T[None],
        shift_labels=y_T[None],
        num_items_in_batch=valid,
        skip_logits=True,
        statistics=True,
        use_cache=False,
    )
    gradient = torch.autograd.grad(out.loss, parameters, allow_unused=True, materialize_grads=True)
    losses = out.losses
    kept = {"nll": losses.nll_N, "objective": losses.objective_N}
    if "tfsd/weight" in losses.statistics:
        kept["weight"] = losses.statistics["tfsd/weight"]
    return list(gradient), kept


def _token_table(y_BT: Tensor, losses: list[dict[str, Tensor]]) -> TokenTable:
    def table(name: str) -> Any:
        return torch.stack([of_tokens[name] for of_tokens in losses]).double().cpu().numpy()

    weight = table("weight") if "weight" in losses[0] else None
    return TokenTable(y_BT.cpu().numpy(), table("nll"), table("objective"), weight)


def describe_sequences(
    model: Any, tokenizer: Any, found: SequenceGradients, x_BT: Tensor, indices: list[int], detailed: int
) -> list[Sequence]:
    """All sequences, largest gradient first; token by token the first ``detailed`` and the one with the worst token."""
    table = found.tokens
    order = sorted(range(len(x_BT)), key=lambda row: found.grad_norms[row], reverse=True)
    worst_row = int(table.nll_BT.max(1).argmax())
    sequences = []
    for place, row in enumerate(order):
        ids = [int(x_BT[row, 0]), *table.token_id_BT[row].tolist()]
        sequences.append(
            Sequence(
                row=row,
                index=indices[row],
                nll=float(table.nll_BT[row].mean()),
                worst_nll=float(table.nll_BT[row].max()),
                objective=float(table.objective_BT[row].mean()),
                weight_mean=None if table.weight_BT is None else float(table.weight_BT[row].mean()),
                grad_norm=found.grad_norms[row],
                alignment=found.alignments[row],
                group_grad_norms=found.group_grad_norms[row],
                text=tokenizer.decode(ids),
                tokens=_tokens(model, tokenizer, table, x_BT, row) if place < detailed or row == worst_row else [],
            )
        )
    return sequences


@torch.no_grad()
def _tokens(model: Any, tokenizer: Any, table: TokenTable, x_BT: Tensor, row: int) -> list[Token]:
    with _evaluating(model):
        logits_TV = model(input_ids=x_BT[row : row + 1], use_cache=False).logits[0]
    top = logits_TV.softmax(-1).topk(min(TOP, logits_TV.shape[1]))
    tokens = []
    for position, (p_K, id_K) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True)):
        token_id = int(table.token_id_BT[row, position])
        tokens.append(
            Token(
                position=position,
                token_id=token_id,
                text=tokenizer.decode([token_id]),
                nll=float(table.nll_BT[row, position]),
                objective=float(table.objective_BT[row, position]),
                weight=None if table.weight_BT is None else float(table.weight_BT[row, position]),
                top=[(tokenizer.decode([i]), p) for i, p in zip(id_K, p_K, strict=True)],
            )
        )
    return tokens


def moved_embeddings(
    tokenizer: Any, before_VD: Tensor, after_VD: Tensor, x_BT: Tensor, y_BT: Tensor, count: int
) -> list[MovedEmbedding]:
    """The ``count`` rows of the input embedding that a step moved farthest."""
    distance_V = torch.linalg.vector_norm(after_VD - before_VD, dim=1)
    inputs_V, targets_V = (torch.bincount(ids.flatten(), minlength=len(before_VD)) for ids in (x_BT, y_BT.clamp(min=0)))
    return [
        MovedEmbedding(
            token_id=i,
            text=tokenizer.decode([i]),
            distance=float(distance_V[i]),
            norm_before=float(before_VD[i].norm()),
            norm_after=float(after_VD[i].norm()),
            inputs=int(inputs_V[i]),
            targets=int(targets_V[i]),
        )
        for i in distance_V.topk(min(count, len(before_VD))).indices.tolist()
    ]


@torch.no_grad()
def layer_norms(model: Any, x_BT: Tensor, y_BT: Tensor) -> tuple[float, dict[str, tuple[float, float]]]:
    """NLL of a batch in nats per token, and the (mean, max) L2 norm of the residual stream by place in the body."""
    norms: dict[str, list[Tensor]] = {}

    def keep(name: str, value: Any) -> None:
        h_BTD = value[0] if isinstance(value, tuple) else value
        norms.setdefault(name, []).append(torch.linalg.vector_norm(h_BTD.float(), dim=-1).flatten())

    last = final_norm(model.model)
    handles = [
        block.register_forward_hook(lambda _, __, output, name=f"layer_{i:02d}": keep(name, output))
        for i, block in enumerate(blocks(model.model))
    ]
    handles.append(last.register_forward_pre_hook(lambda _, arguments: keep("pre_final", arguments)))
    handles.append(last.register_forward_hook(lambda _, __, output: keep("final", output)))
    nll, count = 0.0, 0.0
    try:
        with _evaluating(model):
            for x_T, y_T in zip(x_BT, y_BT, strict=True):
                out = model(input_ids=x_T[None], shift_labels=y_T[None], skip_logits=True, use_cache=False)
                losses = out.losses
                nll, count = nll + float(losses.nll_sum), count + float(losses.valid_N.sum())
    finally:
        for handle in handles:
            handle.remove()
    return nll / count, {
        name: (float(torch.cat(values).mean()), float(torch.cat(values).max())) for name, values in norms.items()
    }


def layers(before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]) -> list[Layer]:
    """The norms of :func:`layer_norms` before and after an update, place by place."""
    return [Layer(name, *before[name], *after[name]) for name in before]


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode, and training mode again afterwards if that was on: telemetry sees nothing of what happens within."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
