"""What a run measures, and how long it takes over it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Options:
    """The defaults take about 20 minutes on two cores.

    repeats: rounds of a forward pass at batch 8; the other repetitions follow it.
    seconds: of load in each round of each cell of part 2; three times that at each load of part 4.
    model: an architecture, such as B/16; its weights are random.
    requests: after which part 5 compares the memory.
    """

    parts: tuple[int, ...] = (1, 2, 3, 4, 5)
    repeats: int = 5
    seconds: float = 3.0
    model: str = "B/16"
    device: str = "cpu"
    batches: tuple[int, ...] = (1, 4, 8, 16)
    in_flight: tuple[int, ...] = (1, 8, 32)
    requests: tuple[int, int] = (200, 2000)
    out: Path = HERE / "RESULTS.md"

    @property
    def served_rounds(self) -> int:
        """Rounds of part 2."""
        return max(1, self.repeats // 2)

    def quick(self) -> Options:
        """Proves that everything runs, and measures nothing well."""
        return replace(
            self, repeats=1, seconds=min(self.seconds, 0.5), batches=self.batches[:2], requests=(10, 20)
        )
