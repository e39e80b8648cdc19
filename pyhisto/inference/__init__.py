"""Whole slides through a network: tissue annotations, class probabilities, windows for whatever comes after."""

from __future__ import annotations

from pyhisto.inference.lens import PLAIN, Lens
from pyhisto.inference.settings import InferenceSettings
from pyhisto.inference.stream import Frame, PredictedWindow, WindowObserver, predict_probabilities, stream_windows
from pyhisto.inference.tissue import predict_tissue

__all__ = [
    "PLAIN",
    "Frame",
    "InferenceSettings",
    "Lens",
    "PredictedWindow",
    "WindowObserver",
    "predict_probabilities",
    "predict_tissue",
    "stream_windows",
]
