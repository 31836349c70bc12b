"""Every exception that this package raises on purpose.

    ChangeAnywhereError            exit code 1: it was asked correctly and could not be done
    ├── ShortfallError             fewer results than asked for
    ├── TrainingDivergedError      NaN or infinity in a loss
    └── InputError                 exit code 2: what the user gave is wrong
        ├── ConfigError            an option or recipe value
        ├── LegendError            a legend, a legend map, or a mask value outside the legend
        ├── RasterError            an image file by itself; sources and pairs pass it on as their own kind
        ├── SourceError            single-date imagery
        ├── PairsError             a bi-temporal dataset
        ├── ModelError             a model folder or checkpoint
        └── OutputError            the output folder (not writable, other settings, in use)

Messages are one line: the file, the value found, the value allowed, what to do next.
"""


class ChangeAnywhereError(Exception):
    """Base class. ``exit_code`` is what the command line returns."""

    exit_code = 1


class ShortfallError(ChangeAnywhereError):
    """Fewer results could be made than were asked for; what could be made is there, and in ``report``."""

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(message)
        self.report = report


class TrainingDivergedError(ChangeAnywhereError):
    """A loss became NaN or infinite; the last checkpoint is intact."""


class InputError(ChangeAnywhereError):
    """What the user gave is wrong."""

    exit_code = 2


class ConfigError(InputError):
    """An option or a recipe value is not allowed."""


class LegendError(InputError):
    """A legend or legend map is malformed, or a mask holds a value outside its legend."""


class RasterError(InputError):
    """An image file is not what it must be: its container, bands, depth, colours, compression or size."""


class SourceError(InputError):
    """A single-date source is missing, malformed or inconsistent."""


class PairsError(InputError):
    """A bi-temporal dataset is missing, malformed or inconsistent."""


class EmptySplitError(PairsError):
    """A split is there, but has no pairs (a set of few scenes may have no validation pairs)."""


class ModelError(InputError):
    """A model folder or checkpoint is missing, malformed or does not fit."""


class OutputError(InputError):
    """The output folder cannot be used: not writable, in use, or made with other settings."""


class InUseError(OutputError):
    """Another process is at work in the folder: it may be free later."""


def require(allowed: bool, name: str, value: object, what: str) -> None:
    """Raise :class:`ConfigError` for an option whose value is not ``allowed``; ``what`` says which values are."""
    if not allowed:
        raise ConfigError(f"{name} is {value!r}; allowed: {what}")
