"""Encoded documents on disk, and the cache that finds them again."""
