"""Errors are one clear line, and one family."""

from __future__ import annotations

import pytest

from pyhisto import errors
from pyhisto.errors import MissingPixelSizeError, PyhistoError, SlideError


def test_message_says_found_expected_and_remedy() -> None:
    error = SlideError("slide a.tif is empty", expected="pixels", remedy="copy it again")
    assert str(error) == "slide a.tif is empty; expected pixels; copy it again"
    assert (error.found, error.expected, error.remedy) == ("slide a.tif is empty", "pixels", "copy it again")


def test_parts_that_are_not_given_leave_no_trace() -> None:
    assert str(PyhistoError("found")) == "found"
    assert str(PyhistoError("found", remedy="do this")) == "found; do this"


def test_message_is_one_line() -> None:
    assert str(PyhistoError("two\nlines\tand  tabs", remedy="a\r\nb")) == "two lines and tabs; a b"


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_in_the_family(name: str) -> None:
    assert issubclass(getattr(errors, name), PyhistoError)
    assert name in (errors.__doc__ or "")


def test_a_missing_pixel_size_is_a_slide_error() -> None:
    with pytest.raises(SlideError):
        raise MissingPixelSizeError("none")
