"""Batches requests through a model on one device."""
