"""Run by test_killed_commands: commands that fill a store are killed; the store must work after each.

    python -m tests.store.killed_commands STORE KILLS COMMAND SOURCE SOURCE

`vit-attention models COMMAND SOURCE --force` runs in forks of this process, which has imported everything,
for the two sources in turn. Both make a model of one name; its labels tell which it is.
"""

import contextlib
import io
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from service.cli.main import app
from service.store import pull  # noqa: F401 so that no fork imports it
from service.store.registry import Registry
from service.weights import detect  # noqa: F401

from .tiny import tiny

torch.set_num_threads(1)  # forked below
State = dict[str, torch.Tensor]


def start(store: Path, *arguments: str) -> int:
    """The command in a fork of this process: its pid."""
    child = os.fork()
    if child == 0:
        code: object = 1
        os.environ["VIT_ATTENTION_MODEL_STORE"] = str(store)
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                app(["models", *arguments, "--force"])
            except SystemExit as end:
                code = end.code
        os._exit(code if isinstance(code, int) else 0)
    return child


def finish(store: Path, *arguments: str) -> float:
    """Seconds of the command, undisturbed."""
    began = time.perf_counter()
    assert os.waitpid(start(store, *arguments), 0)[1] == 0
    return time.perf_counter() - began


def loaded(registry: Registry) -> dict[str, tuple[str, State]]:
    """The first label and the weights of each model; every folder must be one."""
    listing = registry.manifests()
    assert not listing.broken, listing.broken
    models = [registry.load(stored) for stored in listing.models]
    return {manifest.name: (manifest.labels[0], model.state_dict()) for manifest, model in models}


def files(folder: Path) -> set[tuple[str, int, int]]:
    """What would change if a file was written again."""
    return {(path.name, path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def leftovers(root: Path) -> set[str]:
    """The hidden folders, and those of downloads."""
    paths = (*root.glob(".new-*"), *root.glob(".old-*"), *root.glob(".downloads/*"))
    return {path.name for path in paths if path.is_dir()}


def moment(root: Path) -> str:
    """How far a command had come, by what it left."""
    if any(root.glob(".old-*")):
        return "between two renames"
    if any(root.glob(".new-*")):
        return "while the model was written"
    if any(root.glob(".downloads/*/*/*.part")):
        return "with a file half fetched"
    return "with files fetched" if any(root.glob(".downloads/*/*/*")) else "with nothing left"


def main(root: Path, kills: int, command: str, *sources: str) -> None:
    chance = random.Random(0)
    store, registry = root / "store", Registry(root / "store")
    earlier = registry.add("earlier", tiny(), "a", None).folder
    untouched, weights = files(earlier), loaded(registry)["earlier"]
    expected: dict[str, State] = {}
    for number, source in enumerate(sources):
        seconds = finish(root / f"whole-{number}", command, source)
        ((name, (label, state)),) = loaded(Registry(root / f"whole-{number}")).items()
        expected[label] = state
    allowed = {f".new-{name}", f".old-{name}", *(source.replace("/", "--") for source in sources)}
    moments: Counter[str] = Counter()
    while moments.total() < kills:
        child = start(store, command, chance.choice(sources))
        time.sleep(chance.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            moments[moment(store)] += 1
        models = loaded(registry)
        assert files(earlier) == untouched
        assert same(models.pop("earlier")[1], weights[1])
        assert models.keys() <= {name}
        for label, state in models.values():
            assert same(state, expected[label]), label
        assert leftovers(store) <= allowed
    for source in sources:
        finish(store, command, source)
    assert loaded(registry).keys() == {"earlier", name}
    assert leftovers(store) == set()
    assert list(Path(tempfile.gettempdir()).iterdir()) == []
    said = ", ".join(f"{count} {when}" for when, count in moments.most_common())
    print(f"killed {moments.total()} times: {said}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
