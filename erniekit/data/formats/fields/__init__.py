"""What the formats share: keys, tools and calls, media marks, grounding objects, preference pairs."""
