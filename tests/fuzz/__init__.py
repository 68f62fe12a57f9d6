"""Mutated inputs for everything that reads what others wrote: each is accepted or refused, without a traceback."""
