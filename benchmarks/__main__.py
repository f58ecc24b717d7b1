"""`python -m benchmarks`: prints and writes RESULTS.md; a part that fails leaves the others standing."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

from benchmarks.options import Options
from benchmarks.report import Part, write

ON_A_CARD = (1, 8, 32, 128)
MODULES = {1: "forward", 2: "served", 3: "stages", 4: "open_loop", 5: "memory"}


def main() -> None:
    options = parse()
    options.out.parent.mkdir(parents=True, exist_ok=True)  # now, rather than after minutes of measuring
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended too
    parts: list[Part] = []
    text = ""
    for number in options.parts:
        began = time.monotonic()
        print(f"part {number}: {MODULES[number]}", file=sys.stderr)
        parts.append(measured(number, options))
        text = write(options.out, parts, described(options))
        print(f"part {number}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    print(text)


def measured(number: int, options: Options) -> Part:
    """A part's findings, or why there are none."""
    try:
        return importlib.import_module(f"benchmarks.{MODULES[number]}").run(options)
    except Exception as error:
        traceback.print_exc()
        return Part(f"{number}. {MODULES[number]}", f"Not measured: {type(error).__name__}: {error}")


def described(options: Options) -> str:
    return f"Parts {', '.join(map(str, options.parts))}; {options.repeats} repeats; {options.model}."


def parse() -> Options:
    default = Options()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--parts", type=integers, default=default.parts, help="such as 1,3")
    parser.add_argument("--repeats", type=int, default=default.repeats)
    parser.add_argument("--seconds", type=float, default=default.seconds, help="of load a measurement")
    parser.add_argument("--model", default=default.model, help="an architecture, such as B/16 or Ti/16")
    parser.add_argument("--device", default=default.device)
    parser.add_argument("--batches", type=integers, help="default: 1,4,8,16; on a card 1,8,32,128")
    parser.add_argument("--in-flight", type=integers, default=default.in_flight)
    parser.add_argument("--requests", type=integers, default=default.requests, help="of part 5: two numbers")
    parser.add_argument("--out", type=Path, default=default.out)
    parser.add_argument("--quick", action="store_true", help="prove that it runs; measure nothing well")
    arguments = vars(parser.parse_args())
    quick = arguments.pop("quick")
    if arguments["batches"] is None:
        arguments["batches"] = default.batches if arguments["device"] == "cpu" else ON_A_CARD
    options = replace(default, **arguments)
    return options.quick() if quick else options


def integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
