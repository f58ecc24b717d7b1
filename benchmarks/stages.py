"""Part 3: what happens to an image beside the model, against what one would call instead."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from benchmarks.models import HALF
from benchmarks.options import Options
from benchmarks.photos import described, photographs
from benchmarks.report import Part, Target
from benchmarks.samples import Samples, interleaved, median, ratio, spread
from service.imaging import png, render
from service.imaging.decode import open_image
from service.imaging.picture import Picture
from service.imaging.preprocess import preprocess
from service.load.markdown import table
from service.types import Box, Preprocess

LIMIT = 64_000_000
SIZES = {"0.3 MP": (640, 480), "3 MP": (2048, 1536), "12 MP": (4000, 3000)}
HOW = Preprocess((224, 224), (224, 224), "bilinear", HALF, HALF)
WIDTH, HEIGHT, BLOCKS = 640, 480, 12
WHOLE = Box(0, 0, WIDTH, HEIGHT)
OURS = "ours"


@dataclass(frozen=True)
class Stage:
    """A piece of work and the ways to do it; those that return bytes are compared by size too."""

    name: str
    ways: dict[str, Callable[[], object]]


def run(options: Options) -> Part:
    stages = [*decoding(), preprocessing(), *encoding(), *rendering(), base64_stage()]
    rows, targets = [], []
    for stage in stages:
        samples = interleaved(stage.ways, 6 * options.repeats)
        rows += lines(stage, samples)
        targets += stage_targets(stage, samples)
    text = (
        f"Milliseconds, median (quartiles) of {6 * options.repeats} rounds, one thread unless the library "
        f"takes more; {described()}. Maps are drawn at random, gamma distributed. Ratios are to the first "
        "line of each stage, ours: above 1 is slower, or larger, than ours.\n\n"
        + table(["stage", "way", "ms", "ratio", "bytes", "ratio"], rows)
    )
    return Part("3. Stages", text, targets)


def lines(stage: Stage, samples: Samples) -> list[list[str]]:
    sizes = {way: size(call()) for way, call in stage.ways.items()}
    first = next(iter(stage.ways))
    return [
        [
            stage.name,
            way,
            spread([it * 1000 for it in samples[way]], 2),
            f"{ratio(samples[way], samples[first]):.2f}x",
            f"{sizes[way]:.0f}" if sizes[way] else "",
            f"{sizes[way] / sizes[first]:.2f}x" if sizes[way] else "",
        ]
        for way in stage.ways
    ]


def size(result: object) -> int:
    return len(result) if isinstance(result, bytes) else 0


def decoding() -> list[Stage]:
    """JPEG bytes to RGB; the draft is what the service decodes where nobody asks for the picture itself."""
    stages = []
    for name, (width, height) in SIZES.items():
        data = photographs(1, width, height)[0]
        stages.append(
            Stage(
                f"JPEG decode, {name}",
                {
                    OURS: lambda data=data: whole(data),
                    "ours, for the model only": lambda data=data: for_the_model(data).reduced(224),
                    "cv2.imdecode": lambda data=data: cv2.imdecode(
                        np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB
                    ),
                    "Pillow": lambda data=data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
                },
            )
        )
    data = photographs(1, *SIZES["12 MP"])[0]
    stages.append(Stage(PIXELS, {OURS: lambda: to_pixels(data)}))
    return stages


PIXELS = "12 MP JPEG bytes to pixels, no overlay"


def to_pixels(data: bytes) -> np.ndarray:
    """As the engine does it."""
    return preprocess(for_the_model(data), HOW)


def for_the_model(data: bytes) -> Picture:
    opened = open_image(data, LIMIT)
    opened.draft(224)
    return opened.decode()


def whole(data: bytes) -> np.ndarray:
    return open_image(data, LIMIT).decode().rows(slice(None))


def preprocessing() -> Stage:
    picture = for_the_model(photographs(1)[0])
    image = picture.rows(slice(None))
    ways: dict[str, Callable[[], object]] = {
        OURS: lambda: preprocess(picture, HOW),
        "Pillow and numpy": lambda: plainly(image),
    }
    try:
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
    except ImportError:
        return Stage("preprocess, 0.3 MP", ways)
    processor = ViTImageProcessorPil()
    ways["transformers"] = lambda: processor(images=image, return_tensors="np")
    return Stage("preprocess, 0.3 MP", ways)


def plainly(image: np.ndarray) -> np.ndarray:
    resized = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(((resized / np.float32(255) - 0.5) / 0.5).transpose(2, 0, 1), np.float32)


def grids() -> np.ndarray:
    return np.random.default_rng(0).gamma(2, size=(BLOCKS, 14, 14)).astype(np.float32)


def drawn_mask(maps: np.ndarray) -> np.ndarray:
    return render.to_grey(render.mask(maps[0], WIDTH, HEIGHT, WHOLE))


def drawn_canvas(maps: np.ndarray) -> np.ndarray:
    """Places in JET."""
    return render.canvas(maps, WIDTH, HEIGHT, WHOLE, "row", 0, LIMIT).levels


def encoding() -> list[Stage]:
    maps = grids()
    mask, canvas = drawn_mask(maps), drawn_canvas(maps)
    image = whole(photographs(1)[0])
    overlay = render.heatmap(render.mask(maps[0], WIDTH, HEIGHT, WHOLE), image)
    return [
        png_stage("PNG mask, 640 x 480", mask),
        png_stage(CANVAS, canvas, render.JET),
        png_stage("PNG overlay, 640 x 480", overlay),
    ]


CANVAS = "PNG canvas, 7680 x 480"


def png_stage(name: str, ours: np.ndarray, palette: np.ndarray | None = None) -> Stage:
    pixels = ours if palette is None else palette[ours]
    bgr = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return Stage(
        name,
        {
            OURS: lambda: png.encode([ours], palette),
            "cv2.imencode": lambda: cv2.imencode(".png", bgr)[1].tobytes(),
            "Pillow": lambda: pillow(pixels),
        },
    )


def pillow(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def rendering() -> list[Stage]:
    """From maps on the patch grid to a PNG."""
    maps = grids()

    def plain_canvas() -> bytes:
        panels = [cv2.applyColorMap(plain_mask(grid), cv2.COLORMAP_JET) for grid in maps]
        return cv2.imencode(".png", np.hstack(panels))[1].tobytes()

    return [
        Stage(
            "map to PNG mask",
            {
                OURS: lambda: png.encode([drawn_mask(maps)]),
                "cv2": lambda: cv2.imencode(".png", plain_mask(maps[0]))[1].tobytes(),
            },
        ),
        Stage(
            "12 maps to PNG canvas",
            {OURS: lambda: png.encode([drawn_canvas(maps)], render.JET), "cv2": plain_canvas},
        ),
    ]


def plain_mask(grid: np.ndarray) -> np.ndarray:
    return (cv2.resize(grid / grid.max(), (WIDTH, HEIGHT)) * 255).astype(np.uint8)


def base64_stage() -> Stage:
    """Of both canvases: what is smaller is also sooner base64."""
    canvas = drawn_canvas(grids())
    small = png.encode([canvas], render.JET)
    large = cv2.imencode(".png", render.JET[canvas])[1].tobytes()
    return Stage(
        "base64 of the canvas",
        {OURS: lambda: base64.b64encode(small), "cv2.imencode's": lambda: base64.b64encode(large)},
    )


def stage_targets(stage: Stage, samples: Samples) -> list[Target]:
    if stage.name == PIXELS:
        return [Target("12 MP JPEG, bytes to pixels", 60, median(samples[OURS]) * 1000, "ms")]
    if stage.name != CANVAS:
        return []
    data = {way: call() for way, call in stage.ways.items()}
    equal = np.array_equal(rgb(data[OURS]), rgb(data["cv2.imencode"]))
    smaller = len(data[OURS]) / len(data["cv2.imencode"])
    return [
        Target("canvas encode, cv2 / ours", 3, ratio(samples["cv2.imencode"], samples[OURS]), at_least=True),
        Target("canvas bytes, ours / cv2, same pixels", 0.5, smaller if equal else math.inf),
    ]


def rgb(data: object) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
