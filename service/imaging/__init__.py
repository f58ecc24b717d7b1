"""Pictures in and out: bytes to RGB, RGB to a model's pixels, maps to masks, overlays and canvases, PNG."""
