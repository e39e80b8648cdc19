"""Training patches, read straight from slides by the annotations that lie on them. None is stored on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from pyhisto.dataset.augment import Augmentation, augment
from pyhisto.dataset.tasks import IGNORED, Task, TrainingImage, Window, is_area
from pyhisto.errors import ConfigError, TrainingError
from pyhisto.slide import Slide

__all__ = ["PatchDataset"]

GLASS_DENSITY = 0.04
"""Mean optical density below which a pixel that nobody labelled counts as glass, thus as background."""


class PatchDataset:
    """Patch `i` of an endless, reproducible series; a map-style data set for torch's DataLoader.

    Parameters
    ----------
    images
        Slides with annotations.
    task
        What is learnt.
    mpp
        Pixel size of the patches in µm.
    size
        Side of a patch in pixels.
    length
        Number of patches.
    seed
        Patch `i` depends on nothing but the seed, `i` and the settings.
    augmentation
        None for none.
    weights
        Relative frequency of the classes that patches are centred on; by default all alike.

    Raises
    ------
    TrainingError
        If no image has an annotation of a class that is needed.
    ConfigError
        If a weight names a class that the task does not have.
    """

    def __init__(
        self,
        images: Sequence[TrainingImage],
        task: Task,
        *,
        mpp: float,
        size: int,
        length: int,
        seed: int,
        augmentation: Augmentation | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.images = list(images)
        self.task = task
        self.mpp = mpp
        self.size = size
        self.length = length
        self.seed = seed
        self.augmentation = augmentation
        self._slides: dict[int, Slide] = {}
        self._anchors = self._collect()
        weights = weights or {}
        unknown = sorted(set(weights) - set(self._anchors))
        if unknown:
            raise ConfigError(f"weight for {unknown[0]!r}", expected=f"one of {', '.join(self._anchors)}")
        share = np.array([weights.get(name, 1.0) for name in self._anchors])
        self._share = share / share.sum()

    def _collect(self) -> dict[str, list[tuple[int, list[Any], npt.NDArray[np.float64]]]]:
        """Return, by class, (image number, geometries, their share) of each image that has any."""
        found: dict[str, list[tuple[int, list[Any], npt.NDArray[np.float64]]]] = {}
        for number, image in enumerate(self.images):
            for name, geometries in self.task.anchors(image).items():
                found.setdefault(name, [])
                if geometries:
                    area = np.maximum(shapely.area(np.array(geometries)), 1.0)
                    found[name].append((number, geometries, area / area.sum()))
        empty = [name for name, places in found.items() if not places]
        if empty or not found:
            raise TrainingError(
                f"no annotation of {empty[0] if empty else 'any class'} on {len(self.images)} training images",
                expected=f"annotations of {', '.join(found) or 'the classes to learn'}",
                remedy="annotate some in QuPath and save",
            )
        return found

    def describe(self) -> dict[str, Any]:
        """Return all that decides which patches come, as JSON types; annotations by their checksum."""
        shapes = hashlib.sha256()
        for image in self.images:
            shapes.update(f"{image.path.name} {image.mpp} {image.crop_to_bounds} {image.series}".encode())
            rows = zip(shapely.to_wkb(image.objects.geometry.to_numpy()), image.objects["classification"], strict=True)
            for shape, classification in rows:
                shapes.update(shape)
                shapes.update(str(classification).encode())
        return {
            "annotations": shapes.hexdigest(),
            "task": [type(self.task).__name__, str(self.task)],
            "mpp": self.mpp,
            "size": self.size,
            "seed": self.seed,
            "augmentation": str(self.augmentation),
            "share": self._share.tolist(),
        }

    def __len__(self) -> int:
        """Return the number of patches."""
        return self.length

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Return patch `index`: RGB uint8 (size, size, 3) and labels uint8 (size, size)."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng((self.seed, index))
        number, (x, y) = self._place(rng)
        image, slide = self.images[number], self._slide(number)
        mpp = self.mpp
        if self.augmentation is not None:
            mpp *= float(np.exp(rng.uniform(-1, 1) * np.log1p(self.augmentation.scale)))
        scale = (mpp / slide.mpp[0], mpp / slide.mpp[1])
        corner = (x - self.size * scale[0] / 2, y - self.size * scale[1] / 2)
        window = Window(corner[0], corner[1], scale, self.size)
        rgb = slide.read_region(window.x, window.y, self.size, self.size, mpp=mpp)
        labels = self.task.label(image, window, mpp)
        glass = (labels == IGNORED) & (rgb.mean(axis=2) > 255 * 10**-GLASS_DENSITY)
        labels[glass] = 0
        if self.augmentation is not None:
            rgb, labels = augment(rgb, labels, self.augmentation, rng)
        return np.ascontiguousarray(rgb), np.ascontiguousarray(labels)

    def _place(self, rng: np.random.Generator) -> tuple[int, tuple[float, float]]:
        """Draw an image and the centre of a patch, level-0 px: class first, then image, then place."""
        name = list(self._anchors)[int(rng.choice(len(self._share), p=self._share))]
        places = self._anchors[name]
        number, geometries, share = places[int(rng.integers(len(places)))]
        geometry = geometries[int(rng.choice(len(geometries), p=share))]
        slide = self._slide(number)
        reach = self.size * self.mpp / 3
        jitter = rng.uniform(-reach, reach, 2) / slide.mpp
        if is_area(geometry):
            point = _point_inside(geometry, rng)
            jitter = jitter / 4
        else:
            point = shapely.get_coordinates(geometry)[0]
        return number, (float(point[0] + jitter[0]), float(point[1] + jitter[1]))

    def _slide(self, number: int) -> Slide:
        """Return the open slide of an image; each process opens its own, when it first needs it."""
        if number not in self._slides:
            image = self.images[number]
            self._slides[number] = Slide(
                image.path, mpp=image.mpp, crop_to_bounds=image.crop_to_bounds, series=image.series
            )
        return self._slides[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_slides": {}}


def _point_inside(polygon: Any, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw a point inside a polygon; its representative point if a hundred draws all miss."""
    x0, y0, x1, y1 = polygon.bounds
    for _ in range(100):
        point = rng.uniform((x0, y0), (x1, y1))
        if polygon.contains(shapely.Point(point)):
            return np.asarray(point)
    return np.asarray(shapely.get_coordinates(polygon.representative_point())[0])
