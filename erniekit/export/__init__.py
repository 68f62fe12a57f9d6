"""Exporting a trained checkpoint for inference engines, and verifying the result."""
