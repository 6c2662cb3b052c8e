"""The instruments on a training loop that is not ours."""

from .monitor import Monitor
