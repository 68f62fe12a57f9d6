"""Errors for users: each message says what is wrong, where, and what to do.

The command line prints them without a traceback.
"""


class ErnieKitError(Exception):
    """A problem that the user can fix. The message needs no traceback to be understood."""


class ConfigError(ErnieKitError):
    """An invalid configuration file, override or combination of settings."""


class DataError(ErnieKitError):
    """An invalid data file, sample, image or video."""


class CheckpointError(ErnieKitError):
    """An invalid, incomplete or incompatible model directory or training checkpoint."""


class VerifyError(ErnieKitError):
    """A failed verification."""


class EngineError(ErnieKitError):
    """A program with a separate environment is not installed, or fails."""
