"""Comparison of a model directory with the engines that serve it."""
