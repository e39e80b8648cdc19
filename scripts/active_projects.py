"""Makes the completely annotated synthetic projects of projects/active, and the split of their patients.

    python scripts/active_projects.py tissue FOLDER
    python scripts/active_projects.py cells FOLDER

FOLDER gets slides/, project/ and split.json: one slide a patient, as PNG, at a low magnification so that a simulation
takes minutes. For tissue, lymphoid aggregates cover 5 % and tumour nests 30 % of it, at 4 µm/px; for cells, 5 % of the
tumour nuclei are positive, at 1 µm/px.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import shapely
from PIL import Image

from pyhisto.dataset import Split, write_split
from pyhisto.objects import concat_objects
from pyhisto.slide import Slide
from pyhisto.synth import SynthSettings, SynthTruth, make_slide
from qupath_ext.project import create_project

MPP = {"tissue": 4.0, "cells": 1.0}
SIDE = {"tissue": 1536, "cells": 640}


def draw(kind: str, seed: int, path: Path) -> SynthTruth:
    """Draw a slide and write it as PNG; return what is on it, px of 1 µm."""
    rare = {"rare_fraction": 0.05, "tumour_fraction": 0.3} if kind == "tissue" else {"proliferation": 0.05}
    side = SIDE[kind]
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "slide.tif"
        truth = make_slide(drawn, SynthSettings(width=side, height=side, mpp=1.0, seed=seed, **rare))
        pixels = round(side / MPP[kind])
        with Slide(drawn) as slide:
            rgb = slide.read_region(0, 0, pixels, pixels, mpp=MPP[kind])
    Image.fromarray(rgb).save(path)
    return truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["tissue", "cells"])
    parser.add_argument("folder", type=Path, help="new folder")
    parser.add_argument("--train", type=int, default=5, help="slides to label")
    parser.add_argument("--test", type=int, default=3, help="slides to test on")
    options = parser.parse_args()
    (options.folder / "slides").mkdir(parents=True)
    project = create_project(options.folder / "project")
    parts = {}
    for number in range(options.train + options.test):
        path = options.folder / "slides" / f"slide-{number}.png"
        truth = draw(options.kind, 100 + number, path)
        objects = concat_objects([truth.tumour, truth.rare]) if options.kind == "tissue" else truth.nuclei
        shown = objects.copy()
        shown["geometry"] = shapely.transform(objects.geometry.to_numpy(), lambda xy: xy / MPP[options.kind])
        patient = f"P{number}"
        parts[patient] = "train" if number < options.train else "test"
        project.add_image(path, mpp=MPP[options.kind], metadata={"Patient": patient}).write_objects(add=shown)
        print(f"{path.name}: {len(objects)} objects, {parts[patient]}", flush=True)
    test = options.test / len(parts)
    fractions = {"train": 1 - test, "validation": 0.0, "test": test}
    write_split(options.folder / "split.json", Split(parts, 0, fractions))


if __name__ == "__main__":
    main()
