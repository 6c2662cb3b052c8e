"""All metric names with unit, reduction over tokens and ranks, and meaning.

``<group>`` stands for embedding, layer_NN, norm or head; ``<kind>`` for an intervention, of which a second one of the same kind
is ``<kind>-2``; ``NN`` for a block's index, from 00. ``python -m record.metrics`` prints the list as the table in
docs/metrics.md.
"""

import re
from dataclasses import dataclass
from typing import Literal

Reduction = Literal["mean", "max", "same", "host"]
"""mean, max: over all tokens of the step on all ranks, without ignored targets (hidden states: over all tokens). same:
already equal on all ranks (synchronised gradients, replicated parameters). host: known or measured on the main process."""
SignalKind = Literal["loss", "norm", "scale", "rate"]
"""How detectors judge a metric. loss: training lowers it, so that its level should not rise. norm: positive, with
multiplicative noise, so that its logarithm is judged. scale: any other measure of the model. rate: set from outside, counted
or timed; it says nothing of the model."""


Family = Literal["norms", "updates", "hidden", "logits"]
"""Metrics that are measured together, or not (telemetry.families); others always are, or have keys of their own."""
_FAMILIES: dict[Family, tuple[str, ...]] = {
    "norms": ("grad_norm/", "param_norm/", "embedding_norm/", "sigma_reparam/"),
    "updates": ("update_rms/", "update_ratio/", "edge/", "adam/", "adam_rms/"),
    "hidden": ("hidden_norm/",),
    "logits": ("logit/", "entropy/", "tfsd/"),
}


@dataclass(frozen=True)
class Metric:
    """A metric's entry in the list."""

    name: str
    unit: str
    reduction: Reduction
    meaning: str
    kind: SignalKind = "scale"


METRICS = (
    Metric("step", "1", "host", "optimizer steps taken, from 1", "rate"),
    Metric("tokens", "tokens", "host", "tokens up to and including this step, those with ignored targets included", "rate"),
    Metric("lr", "1", "host", "learning rate of this step", "rate"),
    Metric("data/batch", "1", "host", "index of this step's batch: the step itself, unless batches are skipped", "rate"),
    Metric("stress/acting", "1", "host", "faults of the configuration's stress that act at this step", "rate"),
    Metric("loss/nll", "nats/token", "mean", "-log P of the true token: comparable across heads and objectives", "loss"),
    Metric("loss/objective", "nats/token", "mean", "the objective that is minimised"),
    Metric("validation/nll", "nats/token", "mean", "loss/nll on the fixed validation set, after this step's update", "loss"),
    Metric("validation/objective", "nats/token", "mean", "loss/objective on it, after this step's update"),
    Metric("validation/accuracy", "1", "mean", "share of its tokens that are the most probable class, head.abstain's included"),
    Metric("validation/ece", "1", "mean", "expected calibration error: mean distance of accuracy from confidence in 15 bins"),
    Metric("negative/loss", "nats", "mean", "loss of a negative's positions, before its weight (negatives)", "loss"),
    Metric("negative/active", "1", "mean", "share of the terms of negatives.loss=hinge that are above 0"),
    Metric("grad_norm/total", "nats", "same", "L2 norm of the whole gradient, before clipping", "norm"),
    Metric("grad_norm/<group>", "nats", "same", "L2 norm of the group's gradient, before clipping", "norm"),
    Metric("param_norm/<group>", "1", "same", "L2 norm of the group's parameters, before the update", "norm"),
    Metric("update_rms/<group>", "1", "same", "root mean square of the update", "norm"),
    Metric("hidden_norm/embedding/mean", "1", "mean", "L2 norm of the first block's input (only from a monitor)", "norm"),
    Metric("hidden_norm/embedding/max", "1", "max", "the same, largest token", "norm"),
    Metric("hidden_norm/layer_NN/mean", "1", "mean", "L2 norm of the residual stream after block NN", "norm"),
    Metric("hidden_norm/layer_NN/max", "1", "max", "the same, largest token", "norm"),
    Metric("hidden_norm/pre_final/mean", "1", "mean", "L2 norm of the residual stream before the last normalisation", "norm"),
    Metric("hidden_norm/pre_final/max", "1", "max", "the same, largest token", "norm"),
    Metric("hidden_norm/final/mean", "1", "mean", "L2 norm after the last normalisation, the head's input", "norm"),
    Metric("hidden_norm/final/max", "1", "max", "the same, largest token", "norm"),
    Metric("embedding_norm/mean", "1", "same", "L2 norm of the output embeddings, unnormalised, mean over all", "norm"),
    Metric("embedding_norm/max", "1", "same", "the same, largest row", "norm"),
    Metric("logit/max", "nats", "max", "largest logit of any token"),
    Metric("logit/mean", "nats", "mean", "mean logit over the vocabulary"),
    Metric("logit/std", "nats", "mean", "standard deviation of the logits over the vocabulary, on every 16th token"),
    Metric("logit/logsumexp", "nats", "mean", "log partition function"),
    Metric("entropy/p", "nats", "mean", "entropy of the predicted distribution P, on every 16th token"),
    Metric("metric/true_distance", "1", "mean", "distance of the hidden state to the true token's centroid, after normalisation"),
    Metric("metric/abstained", "1", "mean", "probability of the class at the origin, with head.abstain"),
    Metric("cosine/true", "1", "mean", "cosine of the hidden state and the true token's embedding, without margin"),
    Metric("cosine/scale", "nats", "mean", "s, by which a cosine head multiplies all cosines"),
    Metric("tfsd/weight_mean", "1", "mean", "c = Q_y (1 - exp(z_y)), by which TFSD scales the gradient of CE"),
    Metric("tfsd/weight_p10", "1", "mean", "10th percentile of c over tokens, resolved to 0.12% from 1e-16 on"),
    Metric("tfsd/weight_below_1pct", "1", "mean", "share of tokens with c < 0.01"),
    Metric("objective/weight", "1", "mean", "c of another objective that weighs the gradient of CE by token, as focal does"),
    Metric("objective/level", "nats", "mean", "r: log of the probability to which an adaptive TFSD raises the target's"),
    Metric("objective/below_quantile", "1", "mean", "share of tokens below the quantile of log p_y that is followed"),
    Metric("objective/geometry", "1", "mean", "G of kind geometry, without its weight: how far from the teacher's, 0 if alike"),
    Metric("tfsd/target_entropy", "nats", "mean", "entropy of the TFSD target Q, on every 16th token"),
    Metric("attention/logit_max", "nats", "max", "largest attention logit of up to 256 queries of fixed validation sequences"),
    Metric("attention/entropy", "nats", "mean", "entropy of the attention weights, over layers, heads and queries"),
    Metric("attention/layer_NN/logit_max", "nats", "max", "attention/logit_max of one layer"),
    Metric("attention/layer_NN/entropy", "nats", "mean", "attention/entropy of one layer"),
    Metric("hidden_kurtosis/layer_NN", "1", "same", "excess kurtosis of the residual stream after block NN, on these sequences"),
    Metric("update_ratio/<group>", "1", "same", "L2 norm of the update over that of the group's parameters", "norm"),
    Metric("sigma_reparam/s_max", "1", "same", "largest s: the spectral norm that body.sigma_reparam gives a matrix", "norm"),
    Metric("sigma_reparam/s_min", "1", "same", "the smallest"),
    Metric("edge/promised", "nats/token", "same", "g . d: the loss's slope times the step taken; what follows is on edge_every"),
    Metric("edge/kappa", "1", "mean", "what the step did to its batch's loss, over edge/promised: 1 as promised, < 0 it rose"),
    Metric("edge/logit_change_p50", "pi nats", "same", "spread over the vocabulary of a token's logit change: median token"),
    Metric("edge/logit_change_p99", "pi nats", "same", "the same, 99th percentile of tokens"),
    Metric("edge/logit_change_max", "pi nats", "same", "the same, largest: as the ghost radius of arXiv 2603.13552"),
    Metric("adam_rms/<group>", "1", "same", "root mean square of g / sqrt(v) after the step: far above 1, v is behind", "norm"),
    Metric("adam/sign_like", "1", "same", "share of parameters with abs(m) / sqrt(v) > 0.9"),
    Metric("adam/root_v_max", "nats", "same", "largest sqrt(v)", "norm"),
    Metric("adam/momentum_cosine", "1", "same", "cosine of the gradient with m before the step: below 0, they oscillate"),
    Metric("noise/gradient_square", "nats^2", "mean", "unbiased squared norm of the gradient; needs several micro-batches"),
    Metric("noise/variance", "nats^2 tokens", "mean", "variance of a token's gradient; their ratio is the noise scale"),
    Metric("intervention/<kind>/scale", "1", "same", "factor by which the intervention wanted the gradient multiplied"),
    Metric("intervention/<kind>/update_scale", "1", "same", "factor on the update, mean over parameters"),
    Metric("intervention/<kind>/penalty", "nats/token", "mean", "what the intervention adds to the objective"),
    Metric("intervention/<kind>/skipped", "1", "same", "1 where the intervention skipped the update, else 0"),
    Metric("throughput/tokens_per_second", "tokens/s", "host", "over all ranks, without evaluation and checkpoints", "rate"),
    Metric("memory/peak_bytes", "bytes", "host", "peak since the main process began: on its GPU, else resident", "rate"),
)  # fmt: skip

_PATTERNS: dict[str, tuple[re.Pattern[str], Metric]] = {}


def declare(*metrics: Metric) -> None:
    """Add metrics to the list, for example a plug-in's. Raises ValueError for a name that already means something else."""
    for metric in metrics:
        if _PATTERNS.get(metric.name, (None, metric))[1] != metric:
            raise ValueError(f"the metric {metric.name!r} is declared twice, with different meanings")
        pattern = re.escape(metric.name).replace("<group>", r"(embedding|norm|head|layer_\d+)").replace("NN", r"\d+")
        _PATTERNS[metric.name] = re.compile(pattern.replace("<kind>", r"\w+")), metric


declare(*METRICS)


def describe(name: str) -> Metric:
    """The entry that covers ``name``. Raises KeyError if there is none."""
    name = re.sub(r"^(intervention/\w+)-\d+/", r"\1/", name)  # the second one of a kind is called kind-2
    for pattern, metric in _PATTERNS.values():
        if pattern.fullmatch(name):
            return metric
    raise KeyError(f"{name!r} is not in record/metrics.py")


def family_of(name: str) -> Family | None:
    """The family that a metric is of, if it is of one."""
    if name == "grad_norm/total":
        return None
    return next((family for family, prefixes in _FAMILIES.items() if name.startswith(prefixes)), None)


def is_known(name: str) -> bool:
    """Whether a metric of this name is declared."""
    try:
        describe(name)
    except KeyError:
        return False
    return True


def kind_of(name: str) -> SignalKind:
    """How to judge a metric: as declared, else as the declared metrics of its family (what precedes the first slash), if all
    these are of one kind; a monitor's groups may have any name."""
    try:
        return describe(name).kind
    except KeyError:
        kinds = {metric.kind for metric in METRICS if metric.name.partition("/")[0] == name.partition("/")[0]}
        return kinds.pop() if len(kinds) == 1 else "scale"


def table() -> str:
    """The list as a Markdown table."""
    rows = ["| metric | unit | reduction | kind | meaning |", "| --- | --- | --- | --- | --- |"]
    rows += [f"| `{m.name}` | {m.unit} | {m.reduction} | {m.kind} | {m.meaning} |" for m in METRICS]
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
