"""``qupath-ext dataset``: QuPath projects from public data sets."""

from __future__ import annotations

import glob
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qupath_ext.cli.common import backend_option
from qupath_ext.exchange.layouts.names import LAYOUTS
from qupath_ext.native.stains import IMAGE_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from qupath_ext.exchange.layouts.choice import LabelSettings
    from qupath_ext.exchange.layouts.truth import TruthSource
    from qupath_ext.workflows.datasets import DatasetSettings, ImportedImage

__all__ = ["dataset"]

PARTS = ("train", "validation", "test")


def _parse_crop(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    parts = value.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise click.BadParameter(f"{value!r} is not x,y,width,height in px", ctx, param)
    return tuple(int(part) for part in parts)


@click.group()
def dataset() -> None:
    """Make QuPath projects of public data sets."""


@dataset.command("import")
@click.argument("layout", type=click.Choice(LAYOUTS))
@click.argument("project", metavar="PROJECT", type=click.Path(path_type=Path))
@click.option(
    "--images", "image_globs", multiple=True, required=True, help="Images, a glob in quotes; may be repeated."
)
@click.option("--labels", "label_globs", multiple=True, required=True, help="Their labels; may be repeated.")
@click.option("--match", default="", help="Regular expression; its first group is what names of both files share.")
@click.option(
    "--class",
    "pairs",
    multiple=True,
    metavar="VALUE=NAME",
    help="Class of a value, word or colour; * is all others, no NAME leaves it out; may be repeated.",
)
@click.option("--class-map", type=click.Path(path_type=Path), default=None, help="The same as JSON or CSV.")
@click.option(
    "--as",
    "shape",
    type=click.Choice(("polygons", "points")),
    default=None,
    help="Outlines as they are, or their centres.",
)
@click.option(
    "--mpp", type=click.FloatRange(0.02, 20), default=None, help="Pixel size in µm, if the images do not say it."
)
@click.option(
    "--crop",
    metavar="X,Y,W,H",
    callback=_parse_crop,
    default=None,
    help="Part of each file that is the image, px; stored as PNG in the project.",
)
@click.option("--part", type=click.Choice(PARTS), default=None, help='What the images are for; entry metadata "Part".')
@click.option(
    "--patient-pattern",
    default="",
    help='Regular expression; its first group in an image\'s name is the metadata "Patient".',
)
@click.option(
    "--dataset", "dataset_name", default=None, help='Entry metadata "Dataset"; default: the name of the project folder.'
)
@click.option(
    "--region-class", default="Training", show_default=True, help="Class of the rectangle over each image; empty: none."
)
@click.option("--regions", "region_globs", multiple=True, help="Masks of what is labelled, if not all is.")
@click.option(
    "--image-type",
    type=click.Choice(IMAGE_TYPES, case_sensitive=False),
    default="BRIGHTFIELD_H_E",
    show_default=True,
    help="Image type.",
)
@click.option("--array", default=None, help="instances, masks: which array of a .npy, .npz or .mat.")
@click.option("--types", "type_globs", multiple=True, help="instances: masks or CSV with the type of each object.")
@click.option("--columns", default=None, help="points: columns of x, y and class; default x,y,class.")
@click.option("--image-column", default=None, help="points: column with the image, if one file is for all.")
@click.option("--border", default=None, help="masks: value or colour of borders that part objects.")
@click.option(
    "--reach", type=click.FloatRange(min=0), default=None, help="masks: how far objects reach into the border, px."
)
@click.option(
    "--colour-tolerance", type=click.FloatRange(min=0), default=None, help="masks: how far colours may be off."
)
@click.option("--allow-empty", is_flag=True, help="Images without labels have no objects.")
@click.option("--dry-run", is_flag=True, help="Read everything, and write nothing.")
@backend_option
def import_(layout: str, project: Path, backend: str, dry_run: bool, **options: Any) -> None:
    """Make images with labels a QuPath project, or add them to PROJECT.

    LAYOUT: "instances" masks with a number for each object; "points" CSV or JSON with positions; "masks" with a value
    or colour for each class; "coco" JSON; "deepliif" red, blue and green masks; "nucls" .npy or .csv.

    Labels become annotations, inside a rectangle that says that all in it is labelled. Images that are there already
    are left as they are, so an import that was stopped goes on. "qupath-ext runs undo" takes labels back.
    """
    from qupath_ext.exchange.layouts.choice import is_one_file, open_labels
    from qupath_ext.exchange.layouts.names import keyed
    from qupath_ext.workflows.datasets import check_names, match

    labels = _label_settings(layout, options)
    settings = _settings(project, options)
    images = keyed(_files(options["image_globs"]), labels.match, "images")
    label_files = _files(options["label_globs"])
    source = open_labels(labels, label_files)
    stray = match(images, source, one_file=is_one_file(labels, label_files), allow_empty=options["allow_empty"])
    if stray:
        click.echo(f"{stray} images of {label_files[0].name} are not among --images and left out", err=True)
    opened = _opened(project, backend) if project.exists() and any(project.iterdir()) else None
    check_names(opened, images, settings)
    if dry_run:
        _report(_would_import(images, source, settings), len(images), "would be imported")
        return
    config = {"layout": layout, **_recorded(options, labels)}
    from qupath_ext.project import create_project
    from qupath_ext.workflows.datasets import import_dataset

    if opened is None:
        opened = create_project(project, backend=backend)
        click.echo(f"project backend: {opened.backend_version}", err=True)
    _report(import_dataset(opened, images, source, settings, config), len(images), "imported")


def _opened(project: Path, backend: str) -> Any:
    from qupath_ext.cli.common import open_for_command

    return open_for_command(project, backend)


def _files(globs: Sequence[str]) -> list[Path]:
    found = [glob.glob(pattern, recursive=True) for pattern in globs]  # noqa: PTH207 - patterns may be absolute
    return [Path(name) for names in found for name in sorted(names)]


def _settings(project: Path, options: Mapping[str, Any]) -> DatasetSettings:
    from qupath_ext.exchange.layouts.names import keyed
    from qupath_ext.workflows.datasets import DatasetSettings

    regions = _files(options["region_globs"])
    return DatasetSettings(
        dataset=project.absolute().name if options["dataset_name"] is None else options["dataset_name"],
        part=options["part"] or "",
        patient_pattern=options["patient_pattern"],
        points=options["shape"] == "points",
        region_class=options["region_class"],
        regions=keyed(regions, options["match"], "regions") if options["region_globs"] else {},
        image_type=options["image_type"].upper(),
        mpp=options["mpp"],
        crop=options["crop"],
    )


def _label_settings(layout: str, options: Mapping[str, Any]) -> LabelSettings:
    from qupath_ext.exchange.layouts.choice import LabelSettings
    from qupath_ext.exchange.layouts.classmap import ClassMap, read_class_map

    base = read_class_map(options["class_map"]) if options["class_map"] else {}
    columns = options["columns"]
    return LabelSettings(
        layout=layout,
        classes=ClassMap.parse(options["pairs"], base).names,
        match=options["match"],
        shape=options["shape"],
        array=options["array"],
        types=tuple(_files(options["type_globs"])) if options["type_globs"] else None,
        columns=None if columns is None else tuple(name.strip() for name in columns.split(",")),
        image_column=options["image_column"],
        border=options["border"],
        reach=options["reach"],
        colour_tolerance=options["colour_tolerance"],
    )


def _recorded(options: Mapping[str, Any], labels: LabelSettings) -> dict[str, Any]:
    """Return what the run's record says: the options, with all classes."""
    given = {name: value for name, value in options.items() if name not in ("pairs", "class_map")}
    return {
        **{name: str(value) if isinstance(value, Path) else value for name, value in given.items()},
        "classes": dict(labels.classes),
    }


def _would_import(
    images: Mapping[str, Path], source: TruthSource, settings: DatasetSettings
) -> Iterable[ImportedImage]:
    from pyhisto.errors import PyhistoError
    from qupath_ext.workflows.datasets import ImportedImage, read_truth

    for key, path in images.items():
        try:
            truth, _ = read_truth(key, path, source, settings)
        except PyhistoError as error:
            yield ImportedImage(path.name, "failed", {}, error=str(error))
        else:
            yield ImportedImage(path.name, "imported", Counter(truth.classes), truth.left_out)


def _report(images: Iterable[ImportedImage], total: int, done: str) -> None:
    """Say what became of each image, and in the end of all; exit code 1 if one failed."""
    from tqdm import tqdm

    statuses: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    for image in tqdm(images, total=total, desc="images", unit="image", leave=False):
        statuses[image.status] += 1
        labels.update(image.classes)
        if image.status == "failed":
            tqdm.write(f"{image.name}: failed: {image.error}", file=sys.stderr)
        elif image.status == "there":
            tqdm.write(f"{image.name}: there already")
        else:
            counts = ", ".join(f"{n} {name}" for name, n in image.classes.items()) or "no objects"
            left_out = f", {image.left_out} left out" if image.left_out else ""
            tqdm.write(f"{image.name}: {counts}{left_out}")
    said = [f"{statuses['imported']} images {done}"]
    said += [f"{statuses['there']} there already"] if statuses["there"] else []
    said += [f"{statuses['failed']} failed"] if statuses["failed"] else []
    click.echo(f"{', '.join(said)}; {', '.join(f'{n} {name}' for name, n in sorted(labels.items())) or 'no labels'}")
    if statuses["failed"]:
        sys.exit(1)
