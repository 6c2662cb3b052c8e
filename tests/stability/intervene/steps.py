"""Steps of interventions without a run: gradients and norms as training/step.py measures them."""

import torch

from stability.intervene.base import Seen, Update
from stability.intervene.kinds import INTERVENTIONS
from stability.measure.norms import tensor_norms, total_norm


def made(kind, **options):
    """An intervention with these options."""
    return INTERVENTIONS[kind](INTERVENTIONS[kind].Options(**options))


def seen(step, parameters=(), loss=1.0, norm=None):
    """What a step with the parameters' gradients has measured; ``norm``: a gradient norm instead of theirs."""
    gradient_P = tensor_norms([p.grad for p in parameters]) if parameters else torch.tensor([float(norm)])
    parameter_P = tensor_norms([p.detach() for p in parameters]) if parameters else torch.zeros(1)
    total = total_norm(gradient_P) if norm is None else torch.tensor(float(norm))
    return Seen(step, torch.tensor(float(loss)), total, gradient_P, parameter_P, list(parameters))


def updated(change_P, before=(), taken=True):
    """An update of these norms."""
    return Update(torch.tensor(taken), torch.as_tensor(change_P, dtype=torch.float32), list(before))


def parameters(*shapes, seed=0, scale=1.0):
    """Parameters with normally distributed values and gradients."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for parameter in made:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return made
