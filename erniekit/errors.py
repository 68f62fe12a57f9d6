"""Errors that are for people: what is wrong, where, and what to do.

The command line prints them without a traceback.
"""


class ErnieKitError(Exception):
    """A problem that the user can solve. The message is complete by itself."""


class ConfigError(ErnieKitError):
    """A configuration file, an override or a combination of settings is wrong."""


class DataError(ErnieKitError):
    """A data file, a sample or a picture is wrong."""


class CheckpointError(ErnieKitError):
    """A model directory or a training checkpoint is wrong, incomplete or does not fit."""


class VerifyError(ErnieKitError):
    """A checkpoint does not do what it must."""
