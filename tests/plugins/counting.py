"""A corpus of numbers, counted up in words of digits."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data.corpora import CORPORA, ProseCorpus, ProseOptions


@CORPORA.register("counting")
class Counting(ProseCorpus):
    @dataclass(frozen=True, kw_only=True)
    class Options(ProseOptions):
        up_to: int = 2000

    def identity(self) -> dict[str, Any]:
        return {"kind": "counting", "up_to": self.options.up_to}

    def documents(self, *, progress: bool) -> Iterator[str]:
        for number in range(0, self.options.up_to, 10):
            yield "\n".join(f"{n} comes after {n - 1} and before {n + 1}." for n in range(number, number + 10))
