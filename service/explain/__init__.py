"""Explanations: pure functions of what a forward pass captured; they know no model."""
