"""Which part of a training step a GPU kernel, or an operator on a CPU, belongs to, by its name."""

import re

OTHER = "elementwise, other"
GROUPS = {
    "our softmax kernel": r"_masked_softmax",
    "attention": r"flash|fmha|sdpa|attention",
    "optimizer": r"fused_?adam|adam_?w|Optimizer",
    "norms, telemetry": r"multi_tensor_apply|_foreach_|lpnorm|vector_norm|normtwo|linalg_",
    "layer norm": r"layer_?norm|GammaBeta|rms_?norm",
    "matmul": r"gemm|gemv|cutlass|nvjet|xmma|cublas|splitk|wgmma|\baten::(add|b|add?b)?mm\b|aten::(addmv|mv|dot)\b|mkldnn",
    "copies, casts": r"memcpy|memset|copy_kernel|aten::copy_|aten::_to_copy|aten::(fill_|zero_|cat)$|CatArray|fillfunctor",
    "embedding, gather": r"embedding|gather|scatter|index|compute_grad_weight|krn_partial|sort|radix",
}
"""Patterns, regardless of case; the first that is found counts. Attention's kernels may name CUTLASS too, hence the order."""


def group_of(name: str) -> str:
    """The group of a kernel or an operator."""
    return next((group for group, pattern in GROUPS.items() if re.search(pattern, name, re.IGNORECASE)), OTHER)
