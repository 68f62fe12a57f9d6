"""Exports: a trained checkpoint as a directory that inference engines load, and the proof that it is one."""
