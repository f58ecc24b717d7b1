"""The pictures beside the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from service.load.curve import Point


def forward(path: Path, batches: Sequence[int], milliseconds: Mapping[str, Sequence[float]]) -> str:
    """Milliseconds an image against the batch size; returns the Markdown that shows it."""
    groups = [
        precisions
        for precisions in (("fp32",), ("bf16", "int8"))
        if any(name.startswith(precisions) for name in milliseconds)
    ]
    try:
        figure, axes = _figure(len(groups))
    except ImportError as error:
        return f"(No plot: {error}.)"
    for axis, precisions in zip(axes, groups, strict=True):
        for name, values in milliseconds.items():
            if name.startswith(precisions):
                what = name.removeprefix(f"{precisions[0]} ")
                width = 2.2 if "ours," in what else 1.2
                dashes = "--" if name.startswith("int8") else "-"
                axis.plot(
                    batches, values, marker="o", linewidth=width, linestyle=dashes, markersize=4, label=what
                )
        axis.set(title=", ".join(precisions), xlabel="batch", xscale="log", ylim=(0, None))
        axis.set_xticks(list(batches), [str(batch) for batch in batches])
        axis.minorticks_off()
        axis.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    axes[0].set_ylabel("ms an image")
    return _saved(figure, path, "Milliseconds an image against the batch size")


def open_loop(path: Path, points: Sequence[Point], knee: Point, objective_s: float) -> str:
    """Latency and goodput against load; returns the Markdown that shows it."""
    try:
        figure, (left, right) = _figure(2)
    except ImportError as error:
        return f"(No plot: {error}.)"
    loads = [point.load * 100 for point in points]
    for percent in (50, 95, 99):
        latencies = [point.run.percentile(percent) * 1000 for point in points]
        left.plot(loads, latencies, marker="o", label=f"p{percent}")
    left.set(xlabel="load, % of capacity", ylabel="latency, ms", yscale="log")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:g}")
    left.tick_params(axis="y", which="minor", labelsize=7)
    right.plot(loads, [point.offered for point in points], color="grey", linestyle=":", label="offered")
    right.plot(loads, [point.run.goodput(objective_s) for point in points], marker="o", label="goodput")
    right.set(xlabel="load, % of capacity", ylabel="requests a second", ylim=(0, None))
    for axis in (left, right):
        axis.axvline(knee.load * 100, color="black", linewidth=0.8, linestyle="--", label="knee")
        axis.legend(fontsize=8)
    return _saved(figure, path, "Latency and goodput against load")


def _figure(columns: int) -> tuple:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(
        1, columns, figsize=(5 * columns, 4.6), layout="constrained", squeeze=False
    )
    (axes,) = rows
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _saved(figure, path: Path, says: str) -> str:
    figure.savefig(path, dpi=110)
    figure.clear()
    return f"![{says}]({path.name})"
