"""preprocessor_config.json of a ViT or DeiT, in every form that transformers has written since 2021."""

from __future__ import annotations

import math
import re
from pathlib import Path

from pydantic import BaseModel

from service.errors import CheckpointError
from service.types import Interpolation, Preprocess, Size
from service.weights.files import read_json

PIL_RESAMPLE: dict[int, Interpolation] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
KNOWN = re.compile(r"(ViT|DeiT)(FeatureExtractor|ImageProcessor(Fast|Pil)?)")

Triple = tuple[float, float, float]


class Processor(BaseModel):
    """The fields that decide a pixel, with ViTImageProcessor's defaults."""

    image_processor_type: str | None = None
    feature_extractor_type: str | None = None
    do_resize: bool = True
    size: int | dict[str, int] = 224
    resample: int = 2
    do_center_crop: bool = False
    crop_size: int | dict[str, int] = 224
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: Triple = (0.5, 0.5, 0.5)
    image_std: Triple = (0.5, 0.5, 0.5)
    do_pad: bool | None = None


class DeiTProcessor(Processor):
    """DeiTImageProcessor's defaults: squash to 256 x 256, bicubic, and crop the centre."""

    size: int | dict[str, int] = 256
    resample: int = 3
    do_center_crop: bool = True


def read_preprocess(path: Path, family: str) -> Preprocess:
    """How images are prepared.

    family: "vit" or "deit", whose defaults hold where the file names no processor.
    One number for `size` squashes to a square, as those two processors take it.
    Raises CheckpointError for a processor or a setting that Preprocess can't represent.
    """
    processor = read_json(path, Processor)
    kind = processor.image_processor_type or processor.feature_extractor_type
    if kind is not None and not KNOWN.fullmatch(kind):
        raise CheckpointError(
            f"{path}: the processor is {kind}; supported are ViTImageProcessor and DeiTImageProcessor."
        )
    if (kind or family).lower().startswith("deit"):
        processor = read_json(path, DeiTProcessor)
    refuse_unrepresentable(processor, path)
    resize = resize_of(processor.size, path)
    input_size = crop_of(processor, path) if processor.do_center_crop else resize
    if isinstance(input_size, int):
        raise CheckpointError(
            f"{path}: size is a shorter side and there is no centre crop, so images differ in shape."
        )
    mean, std = (
        (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    )
    return Preprocess(input_size, resize, PIL_RESAMPLE[processor.resample], mean, std)


def refuse_unrepresentable(processor: Processor, path: Path) -> None:
    """CheckpointError for a setting that is neither resize, centre crop, / 255 nor normalise."""
    problems = {
        "do_resize is false; images of any size must become the model's": not processor.do_resize,
        "do_rescale is false; pixels are scaled to 0..1": not processor.do_rescale,
        f"rescale_factor is {processor.rescale_factor}; pixels are divided by 255": not math.isclose(
            processor.rescale_factor, 1 / 255, rel_tol=1e-6
        ),
        f"resample is {processor.resample}; supported are 1 (lanczos), 2 (bilinear), 3 (bicubic)": (
            processor.resample not in PIL_RESAMPLE
        ),
        "do_pad is true; images are not padded": bool(processor.do_pad),
    }
    for problem, found in problems.items():
        if found:
            raise CheckpointError(f"{path}: {problem}.")


def resize_of(size: int | dict[str, int], path: Path) -> Size | int:
    """(height, width) to squash to, or the shorter side."""
    match size:
        case int():
            return size, size
        case {"height": height, "width": width} if len(size) == 2:
            return height, width
        case {"shortest_edge": edge} if len(size) == 1:
            return edge
        case _:
            raise CheckpointError(
                f"{path}: size is {size}; expected a number, height and width, or shortest_edge."
            )


def crop_of(processor: Processor, path: Path) -> Size:
    """(height, width) of the centre crop."""
    crop = resize_of(processor.crop_size, path)
    if isinstance(crop, int):
        raise CheckpointError(
            f"{path}: crop_size is {processor.crop_size}; expected a number, or height and width."
        )
    return crop
