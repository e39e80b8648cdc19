"""The exceptions that pyhisto raises on purpose.

Every one of them is a single line that says what was found, what was expected and what to do::

    PyhistoError
    ├── SlideError                 a slide cannot be opened or read
    │   ├── UnsupportedSlideError  neither OpenSlide nor tifffile reads the file
    │   └── MissingPixelSizeError  the slide does not say how large a pixel is
    ├── ObjectTableError           a table of path objects breaks its own rules
    ├── ConfigError                a setting is unknown, missing or out of range
    ├── BundleError                a model folder is incomplete, damaged or of another kind
    ├── SanityError                what a model says makes no sense, and it was asked to stop there
    └── TrainingError              the annotations do not allow training what was asked for
"""

from __future__ import annotations

__all__ = [
    "BundleError",
    "ConfigError",
    "MissingPixelSizeError",
    "ObjectTableError",
    "PyhistoError",
    "SanityError",
    "SlideError",
    "TrainingError",
    "UnsupportedSlideError",
]


class PyhistoError(Exception):
    """Base of all errors that a user can act on.

    Parameters
    ----------
    found
        What was met, naming the file, object or option.
    expected
        What should have been there.
    remedy
        What the user can do about it.
    """

    def __init__(self, found: str, *, expected: str = "", remedy: str = "") -> None:
        self.found = found
        self.expected = expected
        self.remedy = remedy
        parts = [found]
        if expected:
            parts.append(f"expected {expected}")
        if remedy:
            parts.append(remedy)
        super().__init__(" ".join("; ".join(parts).split()))


class SlideError(PyhistoError):
    """A slide cannot be opened or read."""


class UnsupportedSlideError(SlideError):
    """Neither OpenSlide nor tifffile reads the file."""


class MissingPixelSizeError(SlideError):
    """The slide does not say how large a pixel is."""


class ObjectTableError(PyhistoError):
    """A table of path objects breaks its own rules."""


class ConfigError(PyhistoError):
    """A setting is unknown, missing or out of range."""


class BundleError(PyhistoError):
    """A model folder is incomplete, damaged or of another kind."""


class SanityError(PyhistoError):
    """What a model says of a slide makes no sense, and it was asked to stop there."""


class TrainingError(PyhistoError):
    """The annotations do not allow training what was asked for."""
