"""Does a model copy? Random tokens, repeated: only a model that looks them up can predict the repetition.

The test for induction heads of Olsson et al. (2022, arXiv 2209.11895).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from analysis.compare.text import RunText
from analysis.probes.base import PROBES, Measure, Probe


@PROBES.register("copying")
class Copying(Probe[Tensor]):
    """NLL of random tokens the first and the second time that they are read."""

    measures = (
        Measure("first", "nats/token", "NLL of random tokens"),
        Measure("second", "nats/token", "NLL of the same tokens, repeated"),
        Measure("gain", "nats/token", "first minus second; 0: the model does not copy"),
        Measure("by_position", "nats/token", "NLL at each position", along="position"),
    )

    @dataclass(frozen=True)
    class Options:
        sequences: int = 32

    def prepare(self, text: RunText, *, seed: int) -> Tensor:
        half = text.data.sequence_length // 2
        generator = torch.Generator().manual_seed(seed)
        once_BT = torch.randint(text.store.vocab_size, (self.options.sequences, half), generator=generator)
        return torch.cat([once_BT, once_BT], dim=1)

    def measure(self, model: Any, prepared: Tensor, *, seed: int) -> dict[str, Any]:
        x_BT = prepared.to(model.device)
        logits_BTV = model(input_ids=x_BT, use_cache=False).logits
        nll_BT = cross_entropy(logits_BTV[:, :-1].transpose(1, 2), x_BT[:, 1:], reduction="none").cpu()
        half = x_BT.shape[1] // 2
        first, second = float(nll_BT[:, : half - 1].mean()), float(nll_BT[:, half:].mean())
        return {"first": first, "second": second, "gain": first - second, "by_position": nll_BT.mean(0)}
