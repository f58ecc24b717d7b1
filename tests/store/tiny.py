"""Tiny checkpoints: width 24, patches of 7 x 7, 5 classes."""

import json
from pathlib import Path

import torch
from torch import nn

from service.models.spec import Architecture
from service.models.vit import VisionTransformer
from service.types import Preprocess
from service.weights.checkpoint import Checkpoint

ARCHITECTURE = Architecture((21, 35), 7, width=24, depth=2, heads=3, mlp_width=40, classes=5, norm_eps=1e-5)
PREPROCESS = Preprocess((21, 35), 29, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))

BAD_NAMES = [
    "",
    ".",
    "..",
    "../x",
    "/etc",
    "a/b",
    "a\\b",
    ".hidden",
    "-x",
    "a\0",
    "a\n",
    "é",
    "a b",
    "x" * 300,
]

PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 28, "width": 28},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def tiny(seed: int = 0) -> Checkpoint:
    """A checkpoint whose head bias and whose labels both tell its seed."""
    torch.manual_seed(seed)
    state = VisionTransformer(ARCHITECTURE).state_dict()
    state["head.bias"].fill_(float(seed))
    return Checkpoint(ARCHITECTURE, PREPROCESS, [f"{seed}/{index}" for index in range(5)], state)


def saved(model: nn.Module, folder: Path, **options: object) -> dict[str, bytes]:
    """A transformers model's folder as a hub has it, a card and a pickle included."""
    model.save_pretrained(folder, **options)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    (folder / "README.md").write_text("card")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    return {path.name: path.read_bytes() for path in folder.iterdir()}
