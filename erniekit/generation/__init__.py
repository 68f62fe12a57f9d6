"""Generation: loading a model for use, its answers token by token, and what they say."""
