"""How the body attends: without device synchronisation in training, and with a probe that measures attention logits.
Shapes: B sequences, T positions, H heads, Q query positions, K key positions, d width of a head."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

CAUSAL = "causal"
QUERIES = 256
"""A probe looks at no more query positions of a sequence than this, evenly spaced, to bound its cost."""

_PROBED: list[dict[str, Tensor]] = []


def attend_causally(body: nn.Module, sequence_length: int) -> bool:
    """Let the body attend causally without a mask; returns False and changes nothing if it would attend differently.

    transformers checks for packed sequences before it builds a mask, which synchronises with the device in every forward
    pass. Sequences here are never padded or packed, so a body whose layers all attend to the whole past of
    ``sequence_length`` positions needs no mask. For training only: afterwards the body raises ValueError for a padding mask
    or a cache, which it would ignore.
    """
    config: Any = body.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    everything = window is None or window >= sequence_length
    usual = config._attn_implementation == "sdpa" and getattr(body, "_supports_attention_backend", False)
    if not (usual and everything and kinds <= {"full_attention", "sliding_attention"}):
        return False
    config._attn_implementation = CAUSAL
    body.register_forward_pre_hook(_refuse_mask_and_cache, with_kwargs=True)
    return True


def _refuse_mask_and_cache(body: nn.Module, arguments: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    mask = kwargs.get("attention_mask")
    if (mask is not None and mask.ndim == 2) or kwargs.get("past_key_values") is not None:
        raise ValueError(
            "this model attends without a mask, for training: load it anew for padded sequences or generation"
        )


@contextmanager
def attention_probe(body: nn.Module) -> Iterator[list[dict[str, Tensor]]]:
    """Within the block, every attention layer of ``body`` appends its statistics to the yielded list.

    Each is {"logit_max": (), "entropy": ()}: the largest attention logit (after scaling and masking) and the mean entropy
    of the attention weights in nats, over heads and queries. The list stays empty for bodies that do not use transformers'
    attention interface. Compiled bodies run uncompiled within the block.
    """
    config: Any = body.config
    usual = config._attn_implementation
    _PROBED.clear()
    if f"{usual}_probe" not in ALL_ATTENTION_FUNCTIONS:
        yield _PROBED
        return
    config._attn_implementation = f"{usual}_probe"
    try:
        with torch.compiler.set_stance("force_eager"):
            yield _PROBED
    finally:
        config._attn_implementation = usual


def attention_statistics(
    query_BHQd: Tensor,
    key_BHKd: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
) -> dict[str, Tensor]:
    """Largest logit and mean entropy (nats) of causal attention, in float32. ``mask`` is boolean, additive or None
    (causal). Uses at most QUERIES query positions, always including the last."""
    positions_Q, z_BHQK = _some_logits(query_BHQd, key_BHKd, scaling)
    if softcap is not None:
        z_BHQK = softcap * torch.tanh(z_BHQK / softcap)
    if mask is None:
        z_BHQK = z_BHQK.masked_fill(_future(positions_Q, key_BHKd.shape[2]), -torch.inf)
    elif mask.dtype == torch.bool:
        z_BHQK = z_BHQK.masked_fill(~mask[:, :, positions_Q], -torch.inf)
    else:
        z_BHQK = z_BHQK + mask[:, :, positions_Q].float()
    p_BHQK = z_BHQK.softmax(-1)
    return {"logit_max": z_BHQK.max(), "entropy": torch.special.entr(p_BHQK).sum(-1).mean()}


def largest_logits(query_BHTd: Tensor, key_BHTd: Tensor, scaling: float) -> Tensor:
    """The largest logit of each query head (H,) in causal attention, before any cap, in float32. Queries may share keys. Uses at
    most QUERIES query positions, always including the last."""
    key_BHTd = key_BHTd.repeat_interleave(query_BHTd.shape[1] // key_BHTd.shape[1], dim=1)
    positions_Q, z_BHQK = _some_logits(query_BHTd, key_BHTd, scaling)
    return z_BHQK.masked_fill_(_future(positions_Q, key_BHTd.shape[2]), -torch.inf).amax((0, 2, 3))


def _some_logits(query_BHTd: Tensor, key_BHTd: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Evenly spaced query positions (Q,) and their logits (B, H, Q, K), the future included."""
    length = query_BHTd.shape[2]
    positions_Q = torch.arange(length - 1, -1, -max(1, -(-length // QUERIES)), device=query_BHTd.device)
    return positions_Q, query_BHTd[:, :, positions_Q].float() @ key_BHTd.float().transpose(2, 3) * scaling


def _future(positions_Q: Tensor, keys: int) -> Tensor:
    """Which keys (Q, K) a query does not see."""
    return torch.arange(keys, device=positions_Q.device) > positions_Q[:, None]


Watcher = Callable[[Tensor, Tensor, float], None]
"""Called with query (B, H, T, d), key (B, H, T, d; fewer heads if queries share keys) and the factor on their products."""


def watch_attention(layer: nn.Module, watcher: Watcher) -> RemovableHandle:
    """Call ``watcher`` whenever ``layer`` attends in training mode. Only for bodies that attend causally without a mask
    (:func:`attend_causally`)."""
    watchers: OrderedDict[int, Watcher] | None = getattr(layer, "attention_watchers", None)
    if watchers is None:
        watchers = layer.attention_watchers = OrderedDict()  # type: ignore[assignment]
    handle = RemovableHandle(watchers)
    watchers[handle.id] = watcher
    return handle


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    """Scaled dot-product attention of transformers, and what watches the layer in training."""
    if module.training and (watchers := getattr(module, "attention_watchers", None)):
        for watcher in watchers.values():
            watcher(query, key, kwargs.get("scaling") or query.shape[-1] ** -0.5)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _probe(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    groups = query.shape[1] // key.shape[1]  # queries may share keys
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        key_BHKd = key.repeat_interleave(groups, dim=1)
        _PROBED.append(attention_statistics(query, key_BHKd, attention_mask, scaling, kwargs.get("softcap")))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(CAUSAL, attend)
AttentionInterface.register(f"{CAUSAL}_probe", _probe)
AttentionInterface.register("sdpa_probe", _probe)
AttentionMaskInterface.register("sdpa_probe", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
