"""ViT Attention Service: what a Vision Transformer predicted, and what it looked at."""

__version__ = "0.1.0"
