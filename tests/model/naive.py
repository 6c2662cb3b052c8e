"""Definitions in plain float64 PyTorch, written to be obviously right: what the fast code is tested against."""

import math

import torch
import torch.nn.functional as F


def metric_logits(h_ND, w_VD, g):
    return -g * (h_ND[:, None, :] - w_VD[None, :, :]).square().sum(-1)


def directions(x_ND):
    return x_ND / x_ND.norm(dim=1, keepdim=True).clamp(min=1e-3)


def logits(head, h_ND, w_VD):
    """Of any head of the project, from hidden states and weight in float64 and its own parameters."""
    o = head.options
    match type(head).__name__:
        case "LinearHead":
            z_NV = o.multiplier * h_ND @ w_VD.T + (0 if head.bias is None else head.bias.double())
            return z_NV if o.soft_cap is None else o.soft_cap * (z_NV / o.soft_cap).tanh()
        case "MetricHead":
            w_VD = w_VD - w_VD.mean(0) if o.centroid_norm == "centred" else w_VD
            w_VD = torch.cat([w_VD, torch.zeros_like(w_VD[:1])]) if o.abstain else w_VD
            return metric_logits(h_ND, w_VD, head.scale())
        case "CosineHead":
            return head.scale() * directions(h_ND) @ directions(w_VD).T
        case "VonMisesFisherHead":
            return o.multiplier * h_ND.norm(dim=1, keepdim=True) * F.normalize(h_ND, dim=1) @ directions(w_VD).T
        case "HarmonicHead":
            squares_NV, floor_N1 = -metric_logits(h_ND, w_VD, 1.0), 1e-6 * h_ND.detach().square().sum(1, keepdim=True)
            return -head.exponent * (torch.maximum(squares_NV, floor_N1).sqrt() / math.sqrt(h_ND.shape[1])).log()
        case "MixtureHead":
            states_NKD = (h_ND @ head.projection.double().T + head.projection_bias.double()).tanh()
            states_NKD = states_NKD.unflatten(1, (o.components, -1))
            prior_NK1 = (h_ND @ head.prior.double().T).softmax(1)[:, :, None]
            return (prior_NK1 * (states_NKD @ w_VD.T).softmax(2)).sum(1).log()
    raise TypeError(type(head))


def with_margin(z_NV, y_N, s, m):
    """ArcFace's logits: the target's is s cos(theta + m), or s (cos(theta) - m sin(m)) where theta + m is beyond pi."""
    theta_N = (z_NV[torch.arange(len(y_N)), y_N] / s).acos()
    true_N = torch.where(theta_N + m < torch.pi, (theta_N + m).cos(), theta_N.cos() - m * math.sin(m))
    return z_NV.scatter(1, y_N[:, None], s * true_N[:, None])


def cross_entropy(z_NV, y_N):
    return F.cross_entropy(z_NV, y_N, reduction="none")


def tfsd(z_NV, y_N):
    """KL(Q || P): P the model's prediction, Q the same with the true class's logit set to 0, detached."""
    teacher_NV = z_NV.detach().clone()
    teacher_NV[torch.arange(len(y_N)), y_N] = 0.0
    return F.kl_div(z_NV.log_softmax(1), teacher_NV.log_softmax(1), log_target=True, reduction="none").sum(1)


def tfsd_weight(z_NV, y_N):
    """c = (1 - exp(z_y)) / (1 + S)."""
    rows = torch.arange(len(y_N))
    negatives_NV = z_NV.clone()
    negatives_NV[rows, y_N] = -torch.inf
    return (1 - z_NV[rows, y_N].exp()) / (1 + negatives_NV.exp().sum(1))


def label_smoothed(z_NV, y_N, e):
    return F.cross_entropy(z_NV, y_N, reduction="none", label_smoothing=e)


def masked_softmax(z_CV, bias_V, y_C):
    """Softmax of z + bias without each row's target, its largest logit and its log-sum-exp."""
    z_CV = z_CV.to(torch.float64, copy=True) + (0 if bias_V is None else bias_V.double())
    z_CV[torch.arange(len(y_C)), y_C] = -torch.inf
    return z_CV.softmax(1), z_CV.amax(1), z_CV.logsumexp(1)
