"""Run by test_shutdown: the server as `vit-attention serve` runs it, with a device that takes orders.

    faulty_server.py STORE ORDERS PORT [SETTING=VALUE ...]

Before each batch it reads the file ORDERS: while it says `hold` the batch waits, `lose` loses the device,
`die` kills the device thread outside the batch; anything else computes.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from service import logs
from service.cli.serve import _bind
from service.cli.server import run
from service.engine.runner import LoadedModel, Runner
from service.settings import Settings
from service.types import Job, Outcome


class FaultyRunner(Runner):
    """Computes, waits or fails as the file says."""

    def __init__(self, orders: Path) -> None:
        super().__init__("cpu", "fp32")
        self.orders = orders

    def run(self, model: LoadedModel, jobs: Sequence[Job], started: float) -> list[Outcome]:
        self.orders.with_suffix(".entered").touch()
        while (order := self.orders.read_text()) == "hold":
            time.sleep(0.01)
        if order == "lose":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().run(model, jobs, started)[: 0 if order == "die" else None]


if __name__ == "__main__":
    store, orders, port, *changes = sys.argv[1:]
    listener = _bind("127.0.0.1", int(port))
    settings = Settings(model_store=Path(store), model=["tiny"], **dict(each.split("=") for each in changes))  # type: ignore
    logs.configure("console", "info")
    run(settings, listener, FaultyRunner(Path(orders)))
