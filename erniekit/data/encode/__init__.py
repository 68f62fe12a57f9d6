"""From conversations to documents of tokens."""
