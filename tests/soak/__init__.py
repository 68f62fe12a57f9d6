"""A run that is killed at random moments, again and again."""
