"""The Triton kernel against its definition, on whatever device the logits are.

Shapes: C rows, V columns.
"""

import torch

from model.kernels import BLOCK, masked_softmax

from . import naive


def check(z_CV, bias_V, y_C, dtype):
    """Compare the kernel with its definition in float64, each number within the rounding that float32 allows it.

    With eps that of float32: a logit z is off by eps |z| if a bias is added to it; the sum over a row by as much as the logits
    that make it up (in the mean over the softmax), and by one eps for each addition of a lane and each level of the tree;
    log-sum-exp L by its own rounding eps |L| too. exp(z - max) turns the rounding of its argument into a relative error; on a
    GPU it is 2^((z - max) / ln 2), which rounds once more. Half precision adds one unit in the last place (the interpreter cuts
    bfloat16 off where hardware rounds), and numbers below its smallest one are 0.
    """
    p_CV, max_C, logsumexp_C = naive.masked_softmax(z_CV, bias_V, y_C)
    z64_CV = z_CV.double() + (0 if bias_V is None else bias_V.double())
    found = masked_softmax(z_CV.clone(), bias_V, y_C, dtype)
    eps, columns = torch.finfo(torch.float32).eps, z_CV.shape[1]
    additions = columns / BLOCK + 32
    logit_CV = z64_CV.abs() * (bias_V is not None)
    error_C = eps * ((p_CV * logit_CV).sum(1) + additions)
    relative_CV = error_C[:, None] + eps * (logit_CV + 2 * (z64_CV - max_C[:, None]).abs())
    smallest = torch.finfo(torch.float32).tiny
    if dtype != torch.float32:
        half = torch.finfo(dtype)
        relative_CV += half.eps
        smallest += half.tiny * half.eps
    assert found.weights_CV.dtype == dtype
    within(found.weights_CV, p_CV, p_CV * relative_CV + smallest, "weights")
    within(found.max_C, max_C, eps * max_C.abs(), "largest logit")
    within(found.logsumexp_C, logsumexp_C, error_C + eps * logsumexp_C.abs(), "log-sum-exp")
    assert bool((found.total_C == 1).all()), found.total_C
    at_target_C = found.weights_CV.gather(1, y_C[:, None])
    assert bool((at_target_C == 0).all()), at_target_C


def within(actual, expected, bound, what):
    """Fail unless all errors are within their bounds, naming the one that exceeds its own by most."""
    excess = ((actual.double() - expected).abs() / bound.clamp(min=1e-300)).nan_to_num(torch.inf).flatten()
    worst = int(excess.argmax())
    place = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), expected.shape))
    assert excess[worst] <= 1, (
        f"{what}: {float(actual.flatten()[worst]):.9g} instead of {float(expected.flatten()[worst]):.9g} at {place}, "
        f"{float(excess[worst]):.3g} times what rounding explains; beyond it are {int((excess > 1).sum())} of {len(excess)}"
    )
