"""Which patients a model is trained, validated and tested on: decided once, written down, never changed by itself."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from pyhisto.dataset.images import PARTS, Part, TrainingImage
from pyhisto.errors import ConfigError, TrainingError

__all__ = ["Split", "check_leakage", "extend_split", "make_split", "read_split", "write_split"]

VERSION = 1
SAMPLE_BYTES = 1 << 16


@dataclass(frozen=True)
class Split:
    """The part of each patient.

    Attributes
    ----------
    patients
        Patient to part.
    seed
        The lot that was drawn.
    fractions
        Share of the patients in each part, summing to 1; what new patients are divided by.

    Raises
    ------
    ConfigError
        If a part is unknown, a patient has no name, or the fractions are no shares.
    """

    patients: Mapping[str, Part]
    seed: int = 0
    fractions: Mapping[Part, float] = field(default_factory=lambda: {"train": 0.6, "validation": 0.2, "test": 0.2})

    def __post_init__(self) -> None:
        for patient, part in self.patients.items():
            if not patient.strip() or part not in PARTS:
                raise ConfigError(f"patient {patient!r} in part {part!r}", expected=f"a name in {', '.join(PARTS)}")
        object.__setattr__(self, "fractions", _checked(self.fractions))

    def part_of(self, patient: str) -> Part:
        """Return the part of a patient.

        Raises
        ------
        TrainingError
            If the split does not know the patient.
        """
        if patient not in self.patients:
            raise TrainingError(
                f"patient {patient!r} is in no part of the split",
                expected=f"one of its {len(self.patients)} patients",
                remedy="extend the split",
            )
        return self.patients[patient]

    def of_part(self, part: Part) -> list[str]:
        """Return the patients of a part, sorted."""
        return sorted(patient for patient, own in self.patients.items() if own == part)


def make_split(
    patients: Iterable[str],
    *,
    fractions: Mapping[Part, float],
    seed: int,
    strata: Mapping[str, str] | None = None,
) -> Split:
    """Divide patients into parts by lot.

    The lot of a patient is the SHA-256 of seed and name, so that neither the order nor the machine matters. Patients
    are dealt one by one, stratum by stratum, to the part that is furthest behind its fraction in the stratum and in
    all; no part is left empty that has a fraction and could have a patient (training first, then validation, then
    test).

    Parameters
    ----------
    patients
        Their names; one that occurs twice counts once.
    fractions
        Share of ``"validation"`` and ``"test"``; the rest is for training.
    seed
        Another seed draws another lot.
    strata
        Stratum of each patient, such as the diagnosis: each is divided alike. None for one stratum.

    Raises
    ------
    ConfigError
        If there is no patient, one has no name, the fractions are no shares, or a patient has no stratum.

    Examples
    --------
    >>> split = make_split("ABCDE", fractions={"validation": 0.2, "test": 0.2}, seed=0)
    >>> [len(split.of_part(part)) for part in ("train", "validation", "test")]
    [3, 1, 1]
    """
    return extend_split(Split({}, seed, fractions), patients, strata=strata)


def extend_split(split: Split, patients: Iterable[str], *, strata: Mapping[str, str] | None = None) -> Split:
    """Give the patients that a split does not know a part, as :func:`make_split` does; all others keep theirs.

    Parameters
    ----------
    split
        What is decided already.
    patients
        Known and new ones.
    strata
        Stratum of each new patient; those of known patients count too, where they are given.

    Raises
    ------
    ConfigError
        If there is no patient at all, one has no name, or a new one no stratum.
    """
    new = set(patients) - set(split.patients)
    if not new and not split.patients:
        raise ConfigError("no patient to divide", expected="at least one")
    lacking = sorted(new - set(strata)) if strata is not None else []
    if lacking:
        raise ConfigError(f"patient {lacking[0]!r} has no stratum", expected="one for each patient")
    of = {patient: (strata or {}).get(patient, "") for patient in {*new, *split.patients}}
    dealt: dict[str, Part] = dict(split.patients)
    overall = Counter(dealt.values())
    within: dict[str, Counter[Part]] = defaultdict(Counter)
    for patient, part in dealt.items():
        within[of[patient]][part] += 1
    wanted = [part for part in PARTS if split.fractions[part] > 0][: len(of)]
    order = sorted(new, key=lambda p: (_lot(split.seed, "stratum", of[p]), _lot(split.seed, "patient", p)))
    for place, patient in enumerate(order):
        stratum = within[of[patient]]
        missing = [part for part in wanted if overall[part] == 0]
        choice = missing if len(missing) >= len(order) - place else [p for p in PARTS if split.fractions[p] > 0]

        def behind(part: Part, stratum: Counter[Part] = stratum) -> float:
            share = split.fractions[part]
            in_stratum = share * (stratum.total() + 1) - stratum[part]
            return in_stratum + share * (overall.total() + 1) - overall[part]

        dealt[patient] = max(choice, key=lambda part: (round(behind(part), 9), -PARTS.index(part)))
        overall[dealt[patient]] += 1
        stratum[dealt[patient]] += 1
    return Split(dealt, split.seed, split.fractions)


def _lot(seed: int, kind: str, name: str) -> str:
    return hashlib.sha256(f"{seed} {kind} {name}".encode()).hexdigest()


def _checked(fractions: Mapping[Part, float]) -> dict[Part, float]:
    """Return the fraction of every part; training has what the others leave."""
    unknown = sorted(set(fractions) - set(PARTS))
    if unknown:
        raise ConfigError(f"fraction of {unknown[0]!r}", expected=f"one of {', '.join(PARTS)}")
    held_out = {part: float(fractions.get(part, 0.0)) for part in PARTS[1:]}
    rest = 1.0 - sum(held_out.values())
    whole: dict[Part, float] = {"train": round(rest, 9), **held_out}
    if not all(0 <= share <= 1 for share in whole.values()) or whole["train"] == 0:
        raise ConfigError(f"fractions {dict(fractions)}", expected="0 or more each, leaving some for training")
    if abs(fractions.get("train", rest) - rest) > 1e-6:
        raise ConfigError(f"fractions {dict(fractions)}", expected="a sum of 1")
    return whole


def write_split(path: Path, split: Split, *, overwrite: bool = False) -> None:
    """Write a split as JSON, all or nothing.

    Parameters
    ----------
    path
        The file.
    split
        What is decided.
    overwrite
        Whether an existing file may be replaced; a split is frozen otherwise.

    Raises
    ------
    ConfigError
        If the file exists, or cannot be written.
    """
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists already", expected="a new file", remedy="extend it, or remove it yourself")
    content = {
        "version": VERSION,
        "seed": split.seed,
        "fractions": dict(split.fractions),
        "patients": {part: split.of_part(part) for part in PARTS},
    }
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror})", remedy="choose another place") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_split(path: Path) -> Split:
    """Read a split that :func:`write_split` wrote.

    Raises
    ------
    ConfigError
        If there is no such file, it is damaged or of another version, or a patient stands in it twice.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"split {path} cannot be read ({error.strerror})", remedy="make it first") from error
    except ValueError as error:
        raise ConfigError(f"split {path} is no JSON ({error})", remedy="restore it from a copy") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        found = content.get("version") if isinstance(content, dict) else None
        raise ConfigError(f"split {path} of version {found!r}", expected=f"version {VERSION}")
    patients: dict[str, Part] = {}
    try:
        if set(content["patients"]) != set(PARTS):
            raise ConfigError(f"split {path}: parts {sorted(content['patients'])}", expected=", ".join(PARTS))
        for part in PARTS:
            names = content["patients"][part]
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ConfigError(f"split {path} is damaged: patients {names!r}", expected="a list of names")
            twice = sorted({name for name in names if name in patients or names.count(name) > 1})
            if twice:
                raise ConfigError(f"split {path}: patient {twice[0]!r} occurs twice", expected="one part each")
            patients.update(dict.fromkeys(names, part))
        return Split(patients, int(content["seed"]), content["fractions"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"split {path} is damaged ({error!r})", remedy="restore it from a copy") from error


def check_leakage(images: Sequence[TrainingImage]) -> None:
    """Make sure that no patient and no slide stands in two parts.

    A slide is the same if its file is, whatever its name: by resolved path, and by content (size and sampled bytes,
    then SHA-256 of the whole file). Patients are compared without regard to blanks.

    Parameters
    ----------
    images
        The slides of all parts.

    Raises
    ------
    TrainingError
        If one patient, or one slide file, is in two parts.
    """
    patients: dict[str, TrainingImage] = {}
    for image in images:
        patient = " ".join(image.patient.split())
        if patient:
            _refuse(patients.setdefault(patient, image), image, f"patient {patient!r}")
    paths: dict[Path, TrainingImage] = {}
    for image in images:
        _refuse(paths.setdefault(image.path.resolve(), image), image, f"slide {image.path.name}")
    alike: list[tuple[Any, TrainingImage]] = sorted(
        ((_sample(path), image) for path, image in paths.items() if path.is_file()), key=lambda pair: pair[0]
    )
    for _, group in groupby(alike, key=lambda pair: pair[0]):
        same = [image for _, image in group]
        if len({image.part for image in same}) > 1:
            contents: dict[str, TrainingImage] = {}
            for image in same:
                _refuse(contents.setdefault(_sha256(image.path), image), image, f"the slide of {image.title}")


def _refuse(first: TrainingImage, second: TrainingImage, what: str) -> None:
    if first.part != second.part:
        raise TrainingError(
            f"{what} is in the parts {first.part} ({first.title}) and {second.part} ({second.title})",
            expected="one part, or the figures would be of slides that the model has seen",
            remedy="give all images of a patient the same part",
        )


def _sample(path: Path) -> tuple[int, bytes]:
    """Return the size of a file and a hash of its beginning, middle and end."""
    size = path.stat().st_size
    found = hashlib.sha256()
    with path.open("rb") as file:
        for start in (0, size // 2, max(0, size - SAMPLE_BYTES)):
            file.seek(start)
            found.update(file.read(SAMPLE_BYTES))
    return size, found.digest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
