"""A stress that disturbs nothing: at its step the run gets the signal by which a scheduler stops it."""

import os
import signal

from stability.stress.base import STRESSES, Stress


@STRESSES.register("stop")
class Stop(Stress):
    def rate(self, step: int) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return 1.0
