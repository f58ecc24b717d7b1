"""transformers' ViT as a user sets it up: sdpa for labels, eager for attention, one set of weights."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from benchmarks.models import transformers_vit


class ViT:
    """Pixels to logits and, where wanted, every block's attention."""

    def __init__(self, model: str) -> None:
        self.predictor = transformers_vit(model, "sdpa")
        self.explainer = transformers_vit(model, "eager")
        self.explainer.load_state_dict(self.predictor.state_dict(), assign=True)
        self.processor = ViTImageProcessorPil()
        self.names: dict[int, str] = self.predictor.config.id2label

    @torch.inference_mode()
    def __call__(self, pixels: Tensor, attention: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits (batch, classes), and attentions (batch, heads, N, N) a block or none."""
        if not attention:
            return self.predictor(pixels).logits, ()
        output = self.explainer(pixels, output_attentions=True)
        return output.logits, output.attentions
