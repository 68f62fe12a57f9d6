"""Finds the data files of the configuration, and reads their records."""
