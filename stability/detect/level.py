"""Rises of a loss's level: by little, over hundreds of values or more, and to stay.

A single value says nothing of them, but the error of an average falls with the number of values. So the loss is averaged in
blocks of several lengths, and a block's average is compared with the lowest level so far, in units of the errors that averages
of its length have had.
"""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from record.metrics import SignalKind

from .base import DETECTORS, Detector
from .baseline import MAD_TO_SIGMA, SMALL_SAMPLE
from .events import Event, Rise

LENGTHS = (32, 128, 512, 2048)
"""Values of a block: of the shortest the median, of the others the mean of the shorter ones' averages."""
KEPT = 64
"""Blocks of each length that are kept; errors are estimated from them."""
FEWEST = 10
"""Errors before a length is judged."""
SMOOTHED = 3
"""Blocks whose median may lower the level: one lucky block does not."""
IN_A_ROW = (3, 2, 2, 2)
"""Blocks of each length that must be above the level in a row: a spike of some tens of values is none."""
SIGMAS = 6.0
"""Errors by which they must be above it."""
AT_LEVEL = 2.0
"""Errors above the level up to which a block may still belong to it: the rise begins after the last one."""
RESOLUTION = 2e-4
"""The error is at least this share of the level."""
SETTLED = 16
"""Blocks after which a rise's level has become the usual one."""

Block = list[Any]
"""First and last step, and average."""


@DETECTORS.register("level")
class LevelRule(Detector):
    """A loss whose level rises and stays up. The event is found where the rise is noticed, and only once.

    The error of a block's average is taken from second differences of neighbouring ones, which a bend of the curve hardly
    enters: (b - 2 c + d) / sqrt(6) for independent averages.
    """

    def __init__(self, signal: str, signal_kind: SignalKind | None = None) -> None:
        super().__init__(signal, signal_kind)
        self.values: list[list[Any]] = []
        """Step and value of the block that is not full."""
        self.blocks: list[list[Block]] = [[] for _ in LENGTHS]
        self.waiting: list[list[Block]] = [[] for _ in LENGTHS]
        """Blocks that will make up the next longer one."""
        self.errors: list[list[float]] = [[] for _ in LENGTHS]
        self.lowest: list[float | None] = [None] * len(LENGTHS)
        """The level of each length: the lowest median of SMOOTHED blocks."""
        self.risen: list[Any] = []
        """Of the last rise, until its level is usual: which length, the level before, its error, and blocks since."""

    @classmethod
    def applies_to(cls, signal: str, signal_kind: SignalKind) -> bool:
        return signal_kind == "loss"

    def take(self, step: int, value: float) -> list[Event]:
        if not math.isfinite(value):
            return []
        self.values.append([step, value])
        if len(self.values) < LENGTHS[0]:
            return []
        block = [self.values[0][0], step, median(value for _, value in self.values)]
        self.values = []
        return self.take_block(block)

    def take_block(self, block: Block) -> list[Event]:
        """Take a full block of the shortest length."""
        return self._add(0, block)

    def _add(self, length: int, block: Block) -> list[Event]:
        """Take a full block, and the longer one that it fills, if any."""
        blocks, errors = self.blocks[length], self.errors[length]
        if len(blocks) >= 2:
            difference = (block[2] - 2 * blocks[-1][2] + blocks[-2][2]) / math.sqrt(6)
            self.errors[length] = errors = [*errors[1 - KEPT :], difference]
        self.blocks[length] = blocks = [*blocks[1 - KEPT :], block]
        found = self._judge(length, blocks, errors) if len(errors) >= FEWEST else []
        if length + 1 < len(LENGTHS):
            waiting = [*self.waiting[length], block]
            full = len(waiting) * LENGTHS[length] == LENGTHS[length + 1]
            self.waiting[length] = [] if full else waiting
            if full:
                mean = math.fsum(each[2] for each in waiting) / len(waiting)
                found += self._add(length + 1, [waiting[0][0], waiting[-1][1], mean])
        return found

    def _judge(self, length: int, blocks: list[Block], errors: list[float]) -> list[Event]:
        """Compare the newest blocks of a length with its level."""
        if self.risen:
            return self._settle(length, blocks)
        level, now = self.lowest[length], median(block[2] for block in blocks[-SMOOTHED:])
        if level is None or now <= level:
            self.lowest[length] = now
            return []
        sigma = MAD_TO_SIGMA * median(abs(error) for error in errors) * (1 + SMALL_SAMPLE / len(errors))
        sigma = max(sigma, RESOLUTION * abs(level))
        height = min(block[2] for block in blocks[-IN_A_ROW[length] :]) - level
        if height <= SIGMAS * sigma:
            return []
        at_level = [block[1] for block in blocks if block[2] <= level + AT_LEVEL * sigma]
        onset = at_level[-1] + 1 if at_level else blocks[0][0]
        self.risen = [length, level, sigma, 0]
        return [Rise(self.kind, self.signal, onset, blocks[-1][1], height, height / sigma)]

    def _settle(self, length: int, blocks: list[Block]) -> list[Event]:
        """Begin anew once the level is back, or has been up for long enough to be the usual one."""
        which, level, sigma, since = self.risen
        if length != which:
            return []
        self.risen[3] = since + 1
        back = all(block[2] <= level + AT_LEVEL * sigma for block in blocks[-IN_A_ROW[length] :])
        if back or since + 1 >= SETTLED:
            self.risen = []
        if not back and not self.risen:  # what came before would be a level to rise from once more
            self.lowest = [None] * len(LENGTHS)
            self.blocks, self.waiting = [[] for _ in LENGTHS], [[] for _ in LENGTHS]
        return []
