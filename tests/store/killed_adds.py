"""Run by test_registry: processes that replace a model are killed; the store must work after each."""

import itertools
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from service.store import registry as module
from service.store.registry import Registry

from .tiny import tiny

torch.set_num_threads(1)  # forked below
CHECKPOINTS = [tiny(1), tiny(2)]


def replace_forever(registry: Registry) -> None:
    for checkpoint in itertools.cycle(CHECKPOINTS):
        registry.add("tiny", checkpoint, "a", None, replace=True)


def die_before_step(registry: Registry, step: int) -> None:
    """Replace once, and die before the given one of the steps that touch the disk."""
    steps = itertools.count()

    def fatal(function: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **kwargs: object) -> object:
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    for owner, name in [
        (Path, "mkdir"),
        (Path, "rename"),
        (Path, "write_text"),
        (os, "unlink"),
        (os, "rmdir"),
    ]:
        setattr(owner, name, fatal(getattr(owner, name)))
    for name in ("_sync", "save_file"):
        setattr(module, name, fatal(getattr(module, name)))
    shutil.rmtree = fatal(shutil.rmtree)
    registry.add("tiny", CHECKPOINTS[1], "a", None, replace=True)
    os._exit(0)


def forked(run: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        run()
    return child


def check(registry: Registry) -> None:
    listing = registry.manifests()
    assert not listing.broken, listing.broken
    assert [stored.manifest.name for stored in listing.models] == ["tiny"]
    for stored in listing.models:
        manifest, model = registry.load(stored)
        seed = int(manifest.labels[0].partition("/")[0])
        assert model.state_dict()["head.bias"].tolist() == [seed] * 5


def main(root: Path) -> None:
    registry = Registry(root)
    registry.add("tiny", CHECKPOINTS[0], "a", None)
    for step in itertools.count():
        child = forked(lambda step=step: die_before_step(registry, step))
        survived = os.WIFEXITED(os.waitpid(child, 0)[1])
        check(registry)
        if survived:
            break
    assert step > 10, step
    for _ in range(15):
        child = forked(lambda: replace_forever(registry))
        time.sleep(random.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        check(registry)
    registry.add("other", CHECKPOINTS[0], "a", None)
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == ["other", "tiny"]
    print(f"killed before each of {step} steps and at 15 random moments")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
