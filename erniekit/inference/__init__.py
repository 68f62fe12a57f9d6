"""Use of a model as it is: load it, generate answers, and compare them with what they should be."""
