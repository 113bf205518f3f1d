"""Slides in, vectors out: tiling, frozen embedders, the feature store, bags. No Ray."""
