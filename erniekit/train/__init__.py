"""Training: composing a run, its steps, and what it tells and saves."""
