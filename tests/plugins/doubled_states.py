"""The output of the first block, doubled for a while."""

from collections.abc import Callable
from typing import Any

from torch import nn

from model import blocks
from stability.stress.base import STRESSES, Stress


@STRESSES.register("doubled_states")
class DoubledStates(Stress):
    def attach(self, model: nn.Module, acting: Callable[[], bool]) -> None:
        def double(module: nn.Module, arguments: Any, output: Any) -> Any:
            if not (module.training and acting()):
                return output
            return 2 * output if not isinstance(output, tuple) else (2 * output[0], *output[1:])

        blocks(model.get_submodule("model"))[0].register_forward_hook(double, prepend=True)

    def describe(self, step: int, batch: int) -> str:
        return "the first block's output doubled"
