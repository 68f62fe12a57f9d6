"""Checkpoints on disk: the Hub layout, and the state of a training run."""
