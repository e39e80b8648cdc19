"""Synthetic Ki-67 slides with known truth, for the demonstration and the tests.

:func:`make_slide` draws one and says where every nest and nucleus is; :func:`annotate_like_a_pathologist` turns that
truth into the sparse, slightly sloppy annotations that a person would leave.
"""

from pyhisto.synth.annotate import AnnotationHabits, annotate_like_a_pathologist
from pyhisto.synth.settings import NUCLEUS_CLASSES, SynthSettings, SynthTruth
from pyhisto.synth.slide import make_slide

__all__ = [
    "NUCLEUS_CLASSES",
    "AnnotationHabits",
    "SynthSettings",
    "SynthTruth",
    "annotate_like_a_pathologist",
    "make_slide",
]
