"""Failures that a user can act on. The command line prints their text as one sentence and exits with their code."""


class ArtokError(Exception):
    """The user's input is wrong: the message says what and how to mend it."""

    exit_code = 2


class ConfigError(ArtokError):
    """A config names an unknown key, a wrong type or an impossible value."""


class DataError(ArtokError):
    """Images, labels or cached tokens are missing, corrupt or do not fit."""


class LayoutError(ArtokError):
    """A generator was given tokens of a layout it does not model; both sides are named."""


class CheckpointError(ArtokError):
    """A run directory or a file of weights is missing, damaged or of another architecture."""


class RunError(ArtokError):
    """Something failed while running (a full disk, a loss that is not finite); what was saved before stays."""

    exit_code = 1
