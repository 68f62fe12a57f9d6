"""Training: building a run (build), running it (run), its steps (trainer), and what happens around them (hooks)."""
