"""Training patches, read straight from slides by the annotations that lie on them. None is stored on disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyhisto.dataset.augment import Augmentation, augment, read_size
from pyhisto.dataset.boundary import BoundaryWeights
from pyhisto.dataset.cells import CellTask
from pyhisto.dataset.describe import describe_images
from pyhisto.dataset.images import HIDDEN, IGNORED, TrainingImage, Window
from pyhisto.dataset.sampling import Anchors, Sampling
from pyhisto.dataset.shapes import Shapes
from pyhisto.dataset.slides import OpenSlides
from pyhisto.dataset.tasks import Task
from pyhisto.errors import ConfigError

__all__ = ["Item", "PatchDataset", "boundary_weights", "check_boundary"]

Item: TypeAlias = (
    tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]
    | tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.float32]]
)
"""RGB uint8 (size, size, 3), labels uint8 (size, size), and with boundary or area weights float32 (size, size)."""

GLASS_DENSITY = 0.04
"""Mean optical density below which a pixel that nobody labelled counts as glass, thus as background."""


class PatchDataset:
    """Patch `i` of an endless, reproducible series; a map-style data set for torch's DataLoader.

    Slides are opened when they are needed, a few at a time, by each process for itself; what is needed to draw labels
    crosses to other processes as arrays.

    Parameters
    ----------
    images
        Slides with annotations; those of the training part are used. Where one of them has weighted areas, all patches
        come with weights: those of the areas times those of the gaps.
    task
        What is learnt.
    mpp
        Pixel size of the patches in µm.
    size
        Side of a patch in pixels. A patch lies within its slide, as far as that is large enough.
    length
        Number of patches.
    seed
        Patch `i` depends on nothing but the seed, `i` and the settings.
    augmentation
        None for none.
    sampling
        What patches are centred on; by default all classes alike.
    boundary
        Weights of the gaps between nuclei; None for none.

    Raises
    ------
    TrainingError
        If no image has an annotation of a class that is needed.
    ConfigError
        If a weight names a class that the task does not have, or boundary weights are wanted without nuclei.
    """

    def __init__(  # noqa: PLR0913
        self,
        images: Sequence[TrainingImage],
        task: Task,
        *,
        mpp: float,
        size: int,
        length: int,
        seed: int,
        augmentation: Augmentation | None = None,
        sampling: Sampling | None = None,
        boundary: BoundaryWeights | None = None,
    ) -> None:
        check_boundary(task, boundary)
        self.task = task
        self.mpp = mpp
        self.size = size
        self.length = length
        self.seed = seed
        self.augmentation = augmentation
        self.sampling = sampling or Sampling()
        self.boundary = boundary
        used = [image for image in images if image.part == "train"]
        self._anchors = Anchors(used, task, self.sampling)
        self._checksum = describe_images(used)
        self._images = [image.without_objects() for image in used]
        self._slides = OpenSlides(self._images)
        self._weighted = any(image.weights for image in used)

    def describe(self) -> dict[str, Any]:
        """Return all that decides which patches come, as JSON types; slides and annotations by their checksum."""
        return {
            "images": self._checksum,
            "task": repr(self.task),
            "mpp": self.mpp,
            "size": self.size,
            "seed": self.seed,
            "augmentation": repr(self.augmentation),
            "sampling": repr(self.sampling),
            "boundary": repr(self.boundary),
        }

    def __len__(self) -> int:
        """Return the number of patches."""
        return self.length

    def __getitem__(self, index: int) -> Item:
        """Return patch `index`; see :data:`Item`."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng((self.seed, index))
        number, point, in_area = self._anchors.draw(rng)
        image, slide = self._images[number], self._slides[number]
        # A nucleus may lie anywhere in the middle two thirds; in an area, the point is any already.
        mpp = image.seen_mpp(self.mpp)
        reach = self.size * mpp / (12 if in_area else 3)
        x, y = point + rng.uniform(-reach, reach, 2) / slide.mpp
        if self.augmentation is not None:
            mpp *= float(np.exp(rng.uniform(-1, 1) * np.log1p(self.augmentation.scale)))
        scale = (mpp / slide.mpp[0], mpp / slide.mpp[1])
        sides = (self.size * scale[0], self.size * scale[1])
        x, y = (_within(*place) for place in zip((x, y), slide.dimensions, sides, strict=True))
        side = read_size(self.size, self.augmentation)
        window = Window(x - side * scale[0] / 2, y - side * scale[1] / 2, scale, side)
        rgb = slide.read_region(window.x, window.y, side, side, mpp=mpp)
        labels = self.task.label(image, window, mpp, hidden=HIDDEN)
        labels[(labels == IGNORED) & _glass(rgb, image)] = 0
        labels[labels == HIDDEN] = IGNORED
        weights = boundary_weights(self.boundary, self.task, image, window, mpp)
        if self._weighted:
            areas = _area_weights(image, window)
            weights = areas if weights is None else weights * areas
        rgb = image.seen(rgb)
        if self.augmentation is not None:
            rgb, labels, weights = augment(rgb, labels, weights, self.augmentation, rng, self.size, stains=image.stains)
        rgb, labels = np.ascontiguousarray(rgb), np.ascontiguousarray(labels)
        return (rgb, labels) if weights is None else (rgb, labels, np.ascontiguousarray(weights))

    def close(self) -> None:
        """Close the slides that this process has open."""
        self._slides.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_slides": OpenSlides(self._images)}


def _within(centre: float, length: float, side: float) -> float:
    """Return the centre nearest to `centre` at which `side` px lie within `length` px; the middle if they are more."""
    return length / 2 if side >= length else min(max(centre, side / 2), length - side / 2)


def _glass(rgb: npt.NDArray[np.uint8], image: TrainingImage) -> npt.NDArray[np.bool_]:
    """Return where a patch shows glass, bool (size, size)."""
    white = 255.0 if image.white is None else float(np.mean(image.white))
    total = rgb[..., 0].astype(np.uint16) + rgb[..., 1] + rgb[..., 2]
    return np.asarray(total > 3 * white * 10**-GLASS_DENSITY)


def check_boundary(task: Task, boundary: BoundaryWeights | None) -> None:
    """Refuse boundary weights for a task without nuclei, with ConfigError."""
    if boundary is not None and not isinstance(task, CellTask):
        raise ConfigError("boundary weights for tissue", expected="a task that learns nuclei", remedy="leave them out")


def boundary_weights(
    boundary: BoundaryWeights | None, task: Task, image: TrainingImage, window: Window, mpp: float
) -> npt.NDArray[np.float32] | None:
    """Return the weights of a window, float32 (size, size), or None where none are wanted."""
    if boundary is None or not isinstance(task, CellTask):
        return None
    margin = boundary.margin(mpp)
    instances = task.instances(image, window.padded(margin), mpp)
    return boundary.weigh(instances, mpp)[margin:-margin, margin:-margin]


def _area_weights(image: TrainingImage, window: Window) -> npt.NDArray[np.float32]:
    """Return what each pixel of a window weighs by the weighted areas of an image, float32 (size, size)."""

    def build() -> Shapes:
        by_weight = sorted(image.weights, key=lambda area: area.weight)  # the heaviest is drawn last
        shapes = np.empty(len(by_weight), dtype=object)
        shapes[:] = [area.geometry for area in by_weight]
        return Shapes(shapes, np.array([area.weight for area in by_weight], dtype=np.float32))

    shapes = image.cached("weights", build)
    place, found = shapes.number(window)
    return np.append(np.float32(1), shapes.values[found])[place]
