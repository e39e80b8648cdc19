"""Dividing the patients of projects into those to train, validate and test on."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pyhisto.dataset import Split, extend_split, make_split, read_split, write_split
from pyhisto.dataset.images import PARTS, Part
from pyhisto.errors import ConfigError
from qupath_ext.errors import ProjectError
from qupath_ext.workflows.trainingdata import Source, patient_of

__all__ = ["PART_NAMES", "described", "split_by_part", "split_by_training", "split_projects"]

PART_NAMES: Mapping[str, Part] = {
    **{name: name for name in PARTS},
    **{"training": "train", "val": "validation", "valid": "validation", "held-out": "test", "heldout": "test"},
}
"""What entry metadata may say (in any case) to name a part."""


def split_projects(
    sources: Sequence[Source],
    output: Path,
    *,
    patient_key: str,
    fractions: Mapping[Part, float],
    seed: int,
    stratify: str | None = None,
    part_key: str | None = None,
    extend: bool = False,
) -> Split:
    """Make or extend a split, and write it.

    Parameters
    ----------
    sources
        The images.
    output
        The file; exists only if it is to be extended.
    patient_key
        Entry metadata that names the patient; images without it are patients by their slide. At least one image must
        have it.
    fractions
        Share of the patients for validation and test.
    seed
        Which lot is drawn.
    stratify
        Entry metadata; its values are divided alike.
    part_key
        Entry metadata that names the part of each image, instead of a lot.
    extend
        Give the patients that the file does not know a part, and leave all others where they are.

    Raises
    ------
    ConfigError
        If the file exists and is not to be extended, or a fraction is out of range.
    ProjectError
        If no image has the metadata, a patient has several strata or parts, or a part is not known.
    """
    if not extend and output.exists():
        raise ConfigError(f"{output} exists already", expected="a new file", remedy="add to it with --extend")
    _check_key(sources, patient_key)
    if part_key is not None:
        split = split_by_part(sources, patient_key, part_key)
        if extend:
            split = _joined(read_split(output), split)
    else:
        strata = None if stratify is None else _value_of_patients(sources, patient_key, stratify)
        patients = {patient_of(source.entry, patient_key) for source in sources}
        if extend:
            split = extend_split(read_split(output), patients, strata=strata)
        else:
            split = make_split(patients, fractions=fractions, seed=seed, strata=strata)
    missing = [place for place in (output.parent, *output.parent.parents) if not place.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_split(output, split, overwrite=extend)
    except BaseException:
        for place in missing:
            with contextlib.suppress(OSError):
                place.rmdir()
        raise
    return split


def split_by_part(sources: Sequence[Source], patient_key: str, part_key: str) -> Split:
    """Return the split that the metadata of the images says; raises as :func:`split_projects` does."""
    parts: dict[str, Part] = {}
    for patient, value in _value_of_patients(sources, patient_key, part_key).items():
        part = PART_NAMES.get(value.strip().lower())
        if part is None:
            raise ProjectError(
                f"patient {patient!r} has {part_key} = {value!r}", expected=f"one of {', '.join(PART_NAMES)}"
            )
        parts[patient] = part
    return Split(parts)


def split_by_training(patients: Iterable[str], validation: float, seed: int) -> Split:
    """Return the split of a training for which none was made: some patients to validate on, none to test on.

    With one patient, or a share of 0, all are for training.
    """
    known = set(patients)
    share = validation if len(known) > 1 else 0.0
    return make_split(known, fractions={"validation": share, "test": 0.0}, seed=seed)


def described(split: Split, patients: Iterable[str]) -> list[str]:
    """Return a line about each part: its patients, and how many images there are of them, given the patient of each."""
    images = Counter(split.part_of(patient) for patient in patients)
    lines = []
    for part in PARTS:
        own = split.of_part(part)
        if own:
            names = ", ".join(own[:6]) + (f", … ({len(own)} in all)" if len(own) > 6 else "")
            lines.append(f"{part:<10} {len(own)} patients, {images[part]} images: {names}")
    return lines


def _check_key(sources: Sequence[Source], key: str) -> None:
    if key and not any(source.entry.metadata.get(key, "").strip() for source in sources):
        known = sorted({name for source in sources for name in source.entry.metadata})
        raise ProjectError(
            f"no image has the metadata {key!r}",
            expected=f"one of {', '.join(map(repr, known))}" if known else "metadata, of which there is none",
            remedy="leave --patient-key out to take each slide as a patient",
        )


def _value_of_patients(sources: Sequence[Source], patient_key: str, key: str) -> dict[str, str]:
    """Return the one value that the images of each patient have under a key."""
    out: dict[str, str] = {}
    for source in sources:
        patient, value = patient_of(source.entry, patient_key), source.entry.metadata.get(key, "").strip()
        if not value:
            raise ProjectError(f"{source.title} has no metadata {key!r}", remedy="enter it in QuPath for all images")
        if out.setdefault(patient, value) != value:
            raise ProjectError(
                f"images of the patient {patient!r} have {key} = {out[patient]!r} and {value!r}",
                expected="one value for each patient",
            )
    return out


def _joined(known: Split, new: Split) -> Split:
    """Return a split with the patients of another added."""
    for patient, part in new.patients.items():
        if known.patients.get(patient, part) != part:
            raise ConfigError(
                f"patient {patient!r} is in the part {known.patients[patient]} and is now to be in {part}",
                expected="the part it has",
                remedy="make a new split, and train anew",
            )
    return Split({**known.patients, **new.patients}, known.seed, known.fractions)
