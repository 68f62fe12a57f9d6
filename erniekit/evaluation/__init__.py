"""Evaluation: losses and metrics of generated answers, and the reports on them."""
