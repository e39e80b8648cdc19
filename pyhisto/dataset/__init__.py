"""Training data: annotations become label masks, and patches are read straight from the slides."""

from pyhisto.dataset.augment import Augmentation
from pyhisto.dataset.patches import PatchDataset
from pyhisto.dataset.tasks import IGNORED, CellTask, Task, TrainingImage, TumourTask

__all__ = ["IGNORED", "Augmentation", "CellTask", "PatchDataset", "Task", "TrainingImage", "TumourTask"]
