"""Metrics of answers: each a small function from an answer and its reference to a number from 0 to 1."""
