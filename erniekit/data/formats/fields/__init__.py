"""Shared by the formats: keys, tools and calls, media marks, grounding objects, preference pairs."""
