"""Attention-MIL training, scoring, heatmaps and reports from stored features. No Ray."""
