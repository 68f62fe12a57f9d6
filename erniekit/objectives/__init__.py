"""Objectives: a packed batch in, sums of losses and counts out."""
