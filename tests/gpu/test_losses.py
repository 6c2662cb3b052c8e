"""The chunked loss on the device against the definitions in float64: value, gradients and statistics.

Shapes: N tokens, C tokens of one block of the definition, V vocabulary, D width.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from model.chunked import SAMPLING, chunked_loss
from model.objectives import of_rows
from model.rivals import rivals_of
from tests.model import naive
from tests.model.test_objectives import HEADS_TRIED, data, make, naive_logits

from .device import DEVICE, size

N, V, D, PADDING = size((131, 60, 16, 4), (1003, 4073, 128, 23))
CHUNK = size(48, None)  # None: the loss's own choice, which 1003 tokens do not divide into either
BLOCK = 32
"""Tokens for which the definition holds all V x D differences at once."""
HEADS = {
    "linear": ("linear", {}),
    "bias": ("linear", {"bias": True}),
    "soft cap": ("linear", {"soft_cap": 1.5, "bias": True}),
    "metric": ("metric", {}),
    "article": ("metric", {"scale": "article"}),
    "learned": ("metric", {"scale": "learned"}),
    "layernorm": ("metric", {"scale": 0.05, "feature_norm": "layernorm", "centroid_norm": "layernorm"}),
    "batchnorm": ("metric", {"scale": 0.05, "centroid_norm": "batchnorm"}),
}
OBJECTIVES = {
    "ce": ("ce", {}),
    "smoothed": ("ce", {"label_smoothing": 0.1, "z_loss": 1e-2}),
    "tfsd": ("tfsd", {}),
    "weighted_ce": ("weighted_ce", {}),
}
OTHERS = {
    "focal": ("focal", {}),
    "poly1": ("poly1", {}),
    "gce": ("gce", {}),
    "threshold": ("threshold", {"probability": 0.05}),
    "mix": ("ce_tfsd", {}),
    "log Z": ("tfsd_anchored", {}),
    "largest": ("tfsd_anchored", {"anchor": "largest", "margin": 0.5}),
    "quantile": ("tfsd_quantile", {}),
    "held": ("tfsd_held", {}),
    "confidence": ("confidence_penalty", {}),
    "virtual teacher": ("virtual_teacher", {"alpha": 0.5}),
    "uskd": ("uskd", {"ranks": 7}),
    "info_nce": ("info_nce", {}),
}
"""Objectives whose own code in float64, of all logits at once, is what they are held against."""
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RANKED = "uskd"
"""Not in half precision: its gradient jumps where rounding lets two logits change places."""
CASES = [
    *((head, objective, dtype) for head in HEADS for objective in OBJECTIVES for dtype in DTYPES),
    *(
        (head, objective, dtype)
        for head in ("linear", "metric")
        for objective in OTHERS
        for dtype in DTYPES[: 1 if objective == RANKED else 3]
    ),
]


def example(head_name, objective_name):
    """Head, objective, hidden states and targets: logits of a few nats, every seventh target ignored, a padded vocabulary."""
    (kind, options), (objective_kind, objective_options) = HEADS[head_name], (OBJECTIVES | OTHERS)[objective_name]
    head, objective = make(kind, objective_kind, D, V + PADDING, options, objective_options, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    h_ND = torch.randn(N, D, generator=generator)
    with torch.no_grad():
        head.weight.copy_(torch.randn(V + PADDING, D, generator=generator) / math.sqrt(D))
        head.weight[V:] = 100.0
        if options.get("bias"):
            head.bias.copy_(torch.randn(V + PADDING, generator=generator))
    y_N = torch.randint(0, V, (N,), generator=generator)
    y_N[::7] = -100
    head.n_classes, head.kernel = V, size("torch", "triton")
    return head.to(DEVICE), objective, h_ND.to(DEVICE).requires_grad_(), y_N.to(DEVICE)


def rounded(x, dtype):
    """``x`` as the products see it, with the gradient of ``x`` itself."""
    return x if dtype == torch.float32 else x + (x.detach().to(dtype).double() - x.detach())


def standardised(w_VD):
    return (w_VD - w_VD.mean(0)) / (w_VD.var(0, correction=0) + 1e-5).sqrt()


def definition(head, h_CD, parameters, dtype):
    """Logits of the head in float64, of the same rounded inputs."""
    options, w_VD = head.options, parameters["weight"][:V]
    if not head.bounded:
        z_CV = rounded(h_CD, dtype) @ rounded(w_VD, dtype).T
        z_CV = z_CV + parameters["bias"][:V] if "bias" in parameters else z_CV
        return z_CV if options.soft_cap is None else options.soft_cap * (z_CV / options.soft_cap).tanh()
    g = parameters["log_scale"].exp() if "log_scale" in parameters else head.initial_scale
    if options.feature_norm == "layernorm":
        h_CD = F.layer_norm(h_CD, (D,))
    if options.centroid_norm != "none":
        w_VD = F.layer_norm(w_VD, (D,)) if options.centroid_norm == "layernorm" else standardised(w_VD)
    return naive.metric_logits(rounded(2 * g * h_CD, dtype) / (2 * g), rounded(w_VD, dtype), g)


def token_losses(objective, z_CV, y_C, rivals):
    if type(objective).__name__ == "TFSD":
        return naive.tfsd(z_CV, y_C)
    if type(objective).__name__ == "WeightedCrossEntropy":
        return naive.tfsd_weight(z_CV.detach(), y_C) * naive.cross_entropy(z_CV, y_C)
    if type(objective).__name__ != "CrossEntropy":
        return objective.loss(of_rows(z_CV, y_C, torch.zeros_like(z_CV[:, 0]), rivals=rivals))
    o = objective.options
    return naive.label_smoothed(z_CV, y_C, o.label_smoothing) + o.z_loss * z_CV.logsumexp(1).square()


def expected(head, objective, h_ND, y_N, dtype):
    """Losses of the valid tokens, gradients by name, and the largest size of a logit: block by block."""
    h64_ND = h_ND.detach().double().requires_grad_()
    parameters = {name: p.detach().double().requires_grad_() for name, p in head.named_parameters()}
    leaves = {"h": h64_ND, **parameters}
    total = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    losses, nlls, largest = [], [], 0.0
    valid_M = (y_N != -100).nonzero()[:, 0]
    rivals = rivals_of(objective, y_N.clamp(min=0), (y_N != -100).double(), V)
    for index_C in valid_M.split(BLOCK):
        z_CV = definition(head, h64_ND[index_C], parameters, dtype)
        loss_C = token_losses(objective, z_CV, y_N[index_C], rivals)
        parts = torch.autograd.grad(loss_C.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
        for name, part in zip(leaves, parts, strict=True):
            total[name] += part
        losses.append(loss_C.detach())
        nlls.append(naive.cross_entropy(z_CV.detach(), y_N[index_C]))
        largest = max(largest, float(z_CV.detach().abs().max()))
    return torch.cat(losses), torch.cat(nlls), total, largest


def tolerance(dtype, largest):
    """Relative error that rounding explains, in the norm.

    float32: rounding adds up like the root of the number of terms, D in a product and N in a sum over tokens, and exp turns
    the rounding of a logit into a relative error of its size. Half precision: products of the same rounded inputs are summed
    in float32; weights, scaled features and the gradient of the features are rounded once each, by half a unit at most.
    """
    eps = torch.finfo(dtype).eps
    return eps * (math.sqrt(D) + math.sqrt(N) + largest) if dtype == torch.float32 else eps


@pytest.mark.parametrize(("head_name", "objective_name", "dtype"), CASES, ids=str)
def test_value_and_gradients(head_name, objective_name, dtype):
    assert torch.get_float32_matmul_precision() == "highest", "TF32 would round the products of float32"
    head, objective, h_ND, y_N = example(head_name, objective_name)
    with torch.autocast(DEVICE, dtype=dtype, enabled=dtype != torch.float32):
        losses = chunked_loss(head, objective, h_ND, y_N, statistics=True, rows=CHUNK)
    loss_M, nll_M, gradients, largest = expected(head, objective, h_ND, y_N, dtype)
    allowed = tolerance(dtype, largest)
    leaves = {"h": h_ND, **dict(head.named_parameters())}
    found = dict(zip(leaves, torch.autograd.grad(losses.objective_sum, list(leaves.values())), strict=True))
    valid_N = y_N != -100
    assert torch.equal(losses.valid_N > 0, valid_N)
    told = {
        "objective, summed": (losses.objective_sum, loss_M.sum()),
        "objective of each token": (losses.objective_N[valid_N], loss_M),
        "NLL, summed": (losses.nll_sum, nll_M.sum()),
        "NLL of each token": (losses.nll_N[valid_N], nll_M),
        **{f"gradient of {name}": (found[name], gradients[name]) for name in leaves},
    }
    errors = {name: float((a.detach().double() - e).norm() / e.norm()) for name, (a, e) in told.items()}
    assert max(errors.values()) <= allowed, f"relative errors, of {allowed:.3g} allowed: {errors}"
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    assert bool((found["weight"][V:] == 0).all()), "the padding has no gradient"
    assert bool((found["h"][~valid_N] == 0).all()), "ignored tokens have no gradient"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*HEADS_TRIED, "dual"])
def test_every_head(name, dtype):
    """Cross-entropy, against the definition on inputs that are not rounded: its errors are those of their rounding, too."""
    N, V, D = 600, 300, 16
    torch.manual_seed(0)
    kind, options = HEADS_TRIED.get(name, (name, {}))
    head, objective = make(kind, "ce", D, V, options, {"label_smoothing": 0.1}, torch.float32)
    h_ND, y_N = data(V, D, N, 0, head, dtype=torch.float32)
    head, h_ND, y_N = head.to(DEVICE), h_ND.detach().to(DEVICE).requires_grad_(), y_N.to(DEVICE)
    head.kernel = size("torch", "triton")
    with torch.autocast(DEVICE, dtype=dtype, enabled=dtype != torch.float32):
        loss = chunked_loss(head, objective, h_ND, y_N, rows=64).objective_sum
    leaves = {"h": h_ND, **dict(head.named_parameters())}
    z_NV = h_ND.double() @ head.weight.double().T if name == "dual" else naive_logits(head, h_ND)
    exact = naive.label_smoothed(z_NV, y_N, 0.1).sum()
    every = {"allow_unused": True, "materialize_grads": True}  # cross-entropy does not read auxiliary logits
    found, wanted = (torch.autograd.grad(x, list(leaves.values()), **every) for x in (loss, exact))
    unit = torch.finfo(dtype).eps
    allowed = unit * (8 + math.sqrt(N)) if dtype == torch.float32 else 8 * unit
    errors = {
        leaf: float((a - e).norm() / e.norm().clamp(min=1e-30))
        for leaf, a, e in zip(leaves, found, wanted, strict=True)
    }
    errors["value"] = float((loss.double() - exact).abs() / exact)
    assert max(errors.values()) <= allowed, f"relative errors, of {allowed:.3g} allowed: {errors}"


@pytest.mark.parametrize("head_name", HEADS)
def test_statistics(head_name):
    head, objective, h_ND, y_N = example(head_name, "tfsd")
    losses = chunked_loss(head, objective, h_ND, y_N, statistics=True, rows=CHUNK)
    parameters = {name: p.detach().double() for name, p in head.named_parameters()}
    sampled_N = torch.arange(N, device=DEVICE) % SAMPLING == 0
    for chosen_N, told in ((y_N != -100, losses.statistics), ((y_N != -100) & sampled_N, losses.sampled)):
        index_M = chosen_N.nonzero()[:, 0]
        blocks = [definition(head, h_ND.detach()[i].double(), parameters, torch.float32) for i in index_M.split(BLOCK)]
        z_MV, y_M = torch.cat(blocks), y_N[index_M]
        teacher_MV = z_MV.scatter(1, y_M[:, None], 0.0)
        definitions = {
            "logit/max": z_MV.amax(1),
            "logit/mean": z_MV.mean(1),
            "logit/logsumexp": z_MV.logsumexp(1),
            "logit/std": z_MV.std(1, correction=0),
            "entropy/p": torch.special.entr(z_MV.softmax(1)).sum(1),
            "tfsd/weight": naive.tfsd_weight(z_MV, y_M),
            "tfsd/target_entropy": torch.special.entr(teacher_MV.softmax(1)).sum(1),
        }
        allowed = tolerance(torch.float32, float(z_MV.abs().max()))
        place = index_M if told is losses.statistics else index_M // SAMPLING
        for name in told.keys() & definitions.keys():
            expected_M, found_M = definitions[name], told[name][place].double()
            scale = float(expected_M.abs().max().clamp(min=float(z_MV.abs().max()) if name.startswith("logit") else 0))
            error = float((found_M - expected_M).abs().max()) / scale
            assert error <= allowed, f"{name}: relative error {error:.3g} of {allowed:.3g} allowed"


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("kind", ["ce", "tfsd"])
def test_the_cold_start(kind, dtype):
    """At g = 0.01 c is about 1/V, and so is every probability: what would round to 0 in half precision must not."""
    head, objective = make("metric", kind, D, V, {"scale": 0.01}, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        head.weight.copy_(0.1 * torch.randn(V, D, generator=generator))
    h_ND = torch.randn(N, D, generator=generator).to(DEVICE).requires_grad_()
    y_N = torch.randint(0, V, (N,), generator=generator).to(DEVICE)
    head = head.to(DEVICE)
    with torch.autocast(DEVICE, dtype=dtype):
        loss = chunked_loss(head, objective, h_ND, y_N, rows=CHUNK).objective_sum
    dh_ND, dw_VD = torch.autograd.grad(loss, (h_ND, head.weight))
    loss_M, _, gradients, largest = expected(head, objective, h_ND, y_N, dtype)
    told = {"h": (dh_ND, gradients["h"]), "weight": (dw_VD, gradients["weight"]), "value": (loss, loss_M.sum())}
    errors = {name: float((a.detach().double() - e).norm() / e.norm()) for name, (a, e) in told.items()}
    assert max(errors.values()) <= tolerance(dtype, largest), f"relative errors: {errors}"
