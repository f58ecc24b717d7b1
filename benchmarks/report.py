"""RESULTS.md: the machine, a section a part, and every target with what was measured."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from service.engine.threads import cpu_budget
from service.load.markdown import table

PACKAGES = (
    *("torch", "openvino", "onnxruntime", "transformers", "litserve", "fastapi", "uvicorn"),
    *("numpy", "opencv-python-headless", "pillow"),
)


@dataclass(frozen=True)
class Target:
    """A number that the project set itself.

    limit: it is met at that or below; with `at_least`, at that or above.
    measured: NaN where this run did not measure it.
    """

    what: str
    limit: float
    measured: float
    unit: str = "x"
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """met, missed or not measured."""
        if math.isnan(self.measured):
            return "not measured"
        met = self.measured >= self.limit if self.at_least else self.measured <= self.limit
        return "met" if met else "**missed**"

    @property
    def cells(self) -> list[str]:
        """The target's row."""
        wanted = f"{'>=' if self.at_least else '<='} {number(self.limit)} {self.unit}"
        measured = "-" if math.isnan(self.measured) else f"{number(self.measured)} {self.unit}"
        return [self.what, wanted, measured, self.verdict]


@dataclass(frozen=True)
class Part:
    """What a part found, as Markdown below its title."""

    title: str
    text: str
    targets: list[Target] = field(default_factory=list)


def number(value: float) -> str:
    """Three figures."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def write(path: Path, parts: Sequence[Part], settings: str) -> str:
    """The whole report, also written to a file."""
    text = report(parts, settings)
    path.write_text(text, encoding="utf-8")
    return text


def report(parts: Sequence[Part], settings: str) -> str:
    """The whole report."""
    targets = [target for part in parts for target in part.targets]
    blocks = [
        "# Measurements",
        "Made by `make bench`. Cases are measured in turns in one run, so trust the ratios more than the "
        f"times. {settings}",
        machine(),
        *(f"## {part.title}\n\n{part.text}" for part in parts),
    ]
    if targets:
        rows = [target.cells for target in targets]
        blocks.append(f"## Targets\n\n{table(['target', 'wanted', 'measured', ''], rows)}")
    return "\n\n".join(blocks) + "\n"


def machine() -> str:
    """What everything ran on."""
    load = ", ".join(f"{it:.1f}" for it in os.getloadavg())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    rows = [
        ["processor", f"{_processor()}; {cpu_budget()} of {os.cpu_count()} CPUs"],
        ["bf16 and int8", _native()],
        ["memory", f"{memory:.0f} GiB"],
        ["system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"],
        ["packages", ", ".join(_versions())],
        ["commit", _commit()],
        ["load average when this was written", load],
    ]
    return table(["machine", ""], rows)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    name = facts.get("model name", platform.machine())
    return f"{name} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"


def _native() -> str:
    import torch

    names = [
        name
        for name in ("avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
        if torch.cpu.get_capabilities().get(name)
    ]
    if torch.cuda.is_available():
        names.append(torch.cuda.get_device_name())
    return ", ".join(names) or "not native"


def _versions() -> list[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return found


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return done.stdout.strip() or "unknown"
