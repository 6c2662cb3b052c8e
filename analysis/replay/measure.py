"""What one training step consists of: the gradients of its sequences, the losses of its tokens, embeddings and layers.

The model is in evaluation mode, on one process, so the sequences' gradients add up to the step's unless that has dropout.
Shapes: B sequences, T positions, V vocabulary, D width, K most probable tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.batches import IGNORED
from model import blocks, final_norm
from stability.measure.norms import GroupNorms, tensor_norms
from training.negatives import Rows, told

from .explanation import BatchSequence, MovedEmbedding, Token, TokenTable

TOP = 3
Gradients = list[dict[str, Any]]
"""By row of the batch: grad_norm, alignment and group_grad_norms of :class:`BatchSequence`."""


def sequence_gradients(
    model: Any, group_norms: GroupNorms, x_BT: Tensor, y_BT: Tensor, counted: Tensor, negative_K: Rows | None = None
) -> tuple[Gradients, TokenTable]:
    """Norm of each sequence's gradient, in total and by group, its cosine with the whole gradient, and the tokens' losses.

    Two backward passes per sequence: the first sums the gradient, the second compares each sequence with it. ``.grad`` stays
    as it is. ``counted`` (): the targets that the loss is divided by; ``negative_K``: the rows that are negatives.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    inputs = [
        {"input_ids": x_T[None], "shift_labels": y_T[None], **told(negative_K, row, 1, x_T.device)}
        for row, (x_T, y_T) in enumerate(zip(x_BT, y_BT, strict=True))
    ]
    whole: list[Tensor] = [torch.zeros_like(p) for p in parameters]
    for sequence in inputs:
        torch._foreach_add_(whole, _gradient(model, parameters, sequence, counted)[0])
    whole_norm = float(group_norms(tensor_norms(whole))[1])
    found, losses = [], []
    for sequence in inputs:
        gradient, of_tokens = _gradient(model, parameters, sequence, counted)
        by_group, norm = group_norms(tensor_norms(gradient))
        products = torch._foreach_mul(gradient, whole)
        product = float(torch.stack([p.sum(dtype=torch.float64) for p in products]).sum())
        scale = float(norm) * whole_norm
        alignment = product / scale if scale > 0 else 0.0
        groups = dict(zip(group_norms.names, by_group.tolist(), strict=True))
        found.append({"grad_norm": float(norm), "alignment": alignment, "group_grad_norms": groups})
        losses.append(of_tokens)

    def table(name: str) -> Any:
        return torch.stack([of_tokens[name] for of_tokens in losses]).double().cpu().numpy()

    weight_BT = table("weight") if "weight" in losses[0] else None
    return found, TokenTable(y_BT.cpu().numpy(), table("nll"), table("objective"), weight_BT)


def _gradient(
    model: Any, parameters: list[Tensor], sequence: dict[str, Tensor], valid: Tensor
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The gradient of one sequence's term of the loss, and the losses of its tokens, 0 where there is no target."""
    options = {"num_items_in_batch": valid, "skip_logits": True, "statistics": True, "use_cache": False}
    out = model(**sequence, **options)
    gradient = torch.autograd.grad(out.loss, parameters, allow_unused=True, materialize_grads=True)
    losses = {"nll": out.losses.nll_N, "objective": out.losses.objective_N}
    for name in ("objective/weight", "tfsd/weight"):  # the objective's own c, if it has one
        if name in out.losses.statistics:
            losses["weight"] = out.losses.statistics[name]
            break
    return list(gradient), {name: value_N.where(out.losses.valid_N > 0, 0) for name, value_N in losses.items()}


def describe_sequences(
    model: Any, tokenizer: Any, gradients: Gradients, table: TokenTable, x_BT: Tensor, indices: list[int], detailed: int
) -> list[BatchSequence]:
    """All sequences, largest gradient first; with tokens the first ``detailed`` and the one with the worst token. Without
    targets, a sequence is its inputs."""
    order = sorted(range(len(x_BT)), key=lambda row: gradients[row]["grad_norm"], reverse=True)
    with_tokens = {*order[:detailed], int(table.nll_BT.max(1).argmax())}
    targets_B = (table.token_id_BT != IGNORED).sum(1)

    def mean(values_BT: npt.NDArray[np.float64], row: int) -> float:
        return float(values_BT[row].sum() / max(targets_B[row], 1))

    return [
        BatchSequence(
            row=row,
            index=indices[row],
            targets=int(targets_B[row]),
            nll=mean(table.nll_BT, row),
            worst_nll=float(table.nll_BT[row].max()),
            objective=mean(table.objective_BT, row),
            weight_mean=None if table.weight_BT is None else mean(table.weight_BT, row),
            text=tokenizer.decode(
                [*x_BT[row].tolist(), *[i for i in table.token_id_BT[row, -1:].tolist() if i != IGNORED]]
            ),
            tokens=_tokens(model, tokenizer, table, x_BT, row) if row in with_tokens else [],
            **gradients[row],
        )
        for row in order
    ]


@torch.no_grad()
def _tokens(model: Any, tokenizer: Any, table: TokenTable, x_BT: Tensor, row: int) -> list[Token]:
    logits_TV = model(input_ids=x_BT[row : row + 1], use_cache=False).logits[0]
    top_TK = logits_TV.softmax(-1).topk(min(TOP, logits_TV.shape[1]))
    return [
        Token(
            position=position,
            token_id=(token_id := int(table.token_id_BT[row, position])),
            text=tokenizer.decode([token_id]),
            nll=float(table.nll_BT[row, position]),
            objective=float(table.objective_BT[row, position]),
            weight=None if table.weight_BT is None else float(table.weight_BT[row, position]),
            top=[(tokenizer.decode([i]), p) for i, p in zip(id_K, p_K, strict=True)],
        )
        for position, (p_K, id_K) in enumerate(zip(top_TK.values.tolist(), top_TK.indices.tolist(), strict=True))
        if table.token_id_BT[row, position] != IGNORED
    ]


@torch.no_grad()
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
    """NLL of a batch in nats per token, and the (mean, max) L2 norm of the residual stream by layer."""
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
        for x_T, y_T in zip(x_BT, y_BT, strict=True):
            out = model(input_ids=x_T[None], shift_labels=y_T[None], skip_logits=True, use_cache=False)
            nll, count = nll + float(out.losses.nll_sum), count + float(out.losses.valid_N.sum())
    finally:
        for handle in handles:
            handle.remove()
    joined = {name: torch.cat(values) for name, values in norms.items()}
    return nll / count, {name: (float(norm_N.mean()), float(norm_N.max())) for name, norm_N in joined.items()}
