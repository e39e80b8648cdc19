"""Makes the completely annotated synthetic projects of projects/active, and the split of their patients.

    python scripts/active_projects.py tissue FOLDER
    python scripts/active_projects.py cells FOLDER

FOLDER gets slides/, project/ and split.json: one slide a patient, as PNG, at a low magnification so that a simulation
takes minutes. Tumour nests cover 5 % of the tissue; for tissue slides are 2 mm wide, at 4 µm/px, and for cells 1 mm, at
1 µm/px, where three in ten tumour nuclei are positive. All come from one laboratory and one scanner.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import shapely
from PIL import Image

from pyhisto.dataset import Split, write_split
from pyhisto.slide import Slide
from pyhisto.synth import SynthSettings, SynthTruth, make_slide
from qupath_ext.project import create_project

MPP = {"tissue": 4.0, "cells": 1.0}
SIDE = {"tissue": 2048, "cells": 1024}

TUMOUR_FRACTION = 0.058
"""What is asked of the synthetic slides: small pieces are dropped, and 5 % of the tissue is left."""


def draw(kind: str, seed: int, path: Path) -> SynthTruth:
    """Draw a slide and write it as PNG; return what is on it, px of 1 µm."""
    side = SIDE[kind]
    settings = SynthSettings(
        width=side,
        height=side,
        mpp=1.0,
        seed=seed,
        tumour_fraction=TUMOUR_FRACTION,
        proliferation=0.3,
        stain_variation=0.0,
        scanner_variation=0.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "slide.tif"
        truth = make_slide(drawn, settings)
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
    share = np.zeros(2)
    for number in range(options.train + options.test):
        path = options.folder / "slides" / f"slide-{number}.png"
        truth = draw(options.kind, 400 + number, path)
        objects = truth.tumour if options.kind == "tissue" else truth.nuclei
        share += truth.tumour.area.sum(), truth.tissue.area.sum()
        shown = objects.copy()
        shown["geometry"] = shapely.transform(objects.geometry.to_numpy(), lambda xy: xy / MPP[options.kind])
        patient = f"P{number}"
        parts[patient] = "train" if number < options.train else "test"
        project.add_image(path, mpp=MPP[options.kind], metadata={"Patient": patient}).write_objects(add=shown)
        print(f"{path.name}: {len(objects)} objects, {parts[patient]}", flush=True)
    print(f"tumour on {share[0] / share[1]:.1%} of the tissue")
    test = options.test / len(parts)
    fractions = {"train": 1 - test, "validation": 0.0, "test": test}
    write_split(options.folder / "split.json", Split(parts, 0, fractions))


if __name__ == "__main__":
    main()
