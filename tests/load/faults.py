"""The server that the soak runs against: `vit-attention serve` with a device that fails on marked images.

    python -m tests.load.faults COUNTS PORT

A marked image is of one colour, which the model's pixels still show; every other image must be computed as
if there were no faults. At the end the file COUNTS says how often each fault was injected.
"""

import dataclasses
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from service import logs
from service.cli.serve import _bind
from service.cli.server import run
from service.engine.runner import LoadedModel, Runner
from service.settings import Settings
from service.types import Job, Outcome, Pixels

FAULTS = {"exception": 500, "no memory": 503, "no memory for two": 200, "NaN": 500, "slow batch": 200}
"""Fault -> the status that a request with its mark must get."""
SLOW_S = 0.2


def marked(fault: str) -> bytes:
    """The image that brings the fault about."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour(fault)).save(buffer, "PNG")
    return buffer.getvalue()


def colour(fault: str) -> tuple[int, int, int]:
    return 255, 0, list(FAULTS).index(fault)


def fault_of(pixels: Pixels) -> str | None:
    """The fault that an image is marked with, where mean and deviation are 0.5 in each channel."""
    corner = pixels[:, :1, :1]
    if not (pixels == corner).all():
        return None
    shown = tuple(np.rint((corner.ravel() + 1) * 127.5).astype(int).tolist())
    return next((fault for fault in FAULTS if colour(fault) == shown), None)


class FaultyRunner(Runner):
    """Computes, but for batches with a marked image in them."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.device, settings.precision, settings.runtime, settings.threads)
        self.counts: Counter[str] = Counter()

    def run(self, model: LoadedModel, jobs: Sequence[Job], started: float) -> list[Outcome]:
        faults = [fault_of(job.pixels) for job in jobs]
        if "exception" in faults:
            raise self.counted("exception", "injected")
        if "no memory" in faults:
            raise self.counted("no memory", "CUDA out of memory: injected")
        if "no memory for two" in faults and len(jobs) > 1:
            raise self.counted("no memory for two", "CUDA out of memory: injected")
        if "slow batch" in faults:
            self.counts["slow batch"] += 1
            time.sleep(SLOW_S)
        self.counts["NaN"] += faults.count("NaN")
        outcomes = super().run(model, jobs, started)
        return [
            dataclasses.replace(outcome, logits=outcome.logits * np.nan) if fault == "NaN" else outcome
            for outcome, fault in zip(outcomes, faults, strict=True)
        ]

    def counted(self, fault: str, words: str) -> RuntimeError:
        self.counts[fault] += 1
        return RuntimeError(words)


if __name__ == "__main__":
    counts, port = sys.argv[1:]
    settings = Settings()
    logs.configure("console", "info")
    runner = FaultyRunner(settings)
    run(settings, _bind("127.0.0.1", int(port)), runner)
    Path(counts).write_text(json.dumps(runner.counts))
