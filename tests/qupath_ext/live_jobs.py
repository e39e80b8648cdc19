"""Jobs as QuPath's scripts write them, and what QuPath then does with an answer, for the tests."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely

from pyhisto.objects import measurement_names
from qupath_ext.exchange.geojson import read_geojson
from qupath_ext.project import ImageEntry, Project, open_project

COLORS = {"Tumor": (200, 0, 0), "Tumor: Positive": (200, 50, 50), "Tumor: Negative": (90, 90, 180)}
H_DAB_TEXT = (
    '{"Name" : "H-DAB default", "Stain 1" : "Hematoxylin", "Values 1" : "0.65111 0.70119 0.29049", '
    '"Stain 2" : "DAB", "Values 2" : "0.26917 0.56824 0.77759", "Background" : " 255 255 255"}'
)


def exported_ring(ring: Any) -> list[list[float]]:
    """Return a ring as QuPath hands it back: float32, another start, the other way round, two decimals."""
    xy = shapely.get_coordinates(ring).astype(np.float32).astype(np.float64)[:-1]
    xy = np.roll(xy, 1, axis=0)[::-1]
    closed = np.vstack([xy, xy[:1]])
    return [[round(float(x), 2), round(float(y), 2)] for x, y in closed]


def exported_geometry(shape: Any) -> dict[str, Any]:
    """Return a geometry as QuPath's exporter writes it."""
    if shape.geom_type == "Polygon":
        return {"type": "Polygon", "coordinates": [exported_ring(ring) for ring in shapely.get_rings(shape)]}
    return dict(shapely.geometry.mapping(shape))


def exported(objects: gpd.GeoDataFrame) -> dict[str, Any]:
    """Return a feature collection as QuPath 0.5's exporter writes it, with the ``parentId`` that the script adds.

    Measurements are one object, derived classes a list of names, and what is not set is not there.
    """
    names = measurement_names(objects)
    features = []
    for object_id, row in objects.iterrows():
        inside: dict[str, Any] = {"objectType": {"tma_core": "tmaCore"}.get(row["object_type"], row["object_type"])}
        if isinstance(row["classification"], str):
            rgb = COLORS.get(row["classification"], (64, 128, 192))
            parts = row["classification"].split(": ")
            named = {"name": parts[0]} if len(parts) == 1 else {"names": parts}
            inside["classification"] = {**named, "color": list(rgb)}
        if isinstance(row["name"], str):
            inside["name"] = row["name"]
        if row["locked"]:
            inside["isLocked"] = True
        if isinstance(row["parent_id"], str):
            inside["parentId"] = row["parent_id"]
        if row["metadata"]:
            inside["metadata"] = dict(row["metadata"])
        measured = {name: round(float(row[name]), 4) for name in names if row[name] == row[name]}
        if measured:
            inside["measurements"] = measured
        feature = {
            "type": "Feature",
            "id": object_id,
            "geometry": exported_geometry(row["geometry"]),
            "properties": inside,
        }
        if row["nucleus"] is not None and row["nucleus"] == row["nucleus"]:
            feature["nucleusGeometry"] = exported_geometry(row["nucleus"])
        features.append(feature)
    features.reverse()  # QuPath promises no order
    return {"type": "FeatureCollection", "features": features}


def make_job(
    folder: Path,
    project: Project,
    entry: ImageEntry,
    task: str,
    *,
    selected: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    objects: gpd.GeoDataFrame | None = None,
    image: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    compressed: bool = False,
) -> Path:
    """Write the folder of a job for an image, as it is saved unless `objects` say otherwise; return it.

    `image` and `changes` take the place of what ``job.json`` would hold.
    """
    folder.mkdir(parents=True)
    text = json.dumps(exported(entry.read_objects() if objects is None else objects)).encode()
    name = "objects.geojson.gz" if compressed else "objects.geojson"
    (folder / name).write_bytes(gzip.compress(text) if compressed else text)
    width, height = entry.size()
    job = {
        "version": 1,
        "task": task,
        "project": str(project.path),
        "qupath": "0.5.1",
        "entry": {"id": entry.id, "name": entry.name},
        "server": {"uris": [entry.server_builder.get("uri")], "builder": entry.server_builder},
        "image": image
        or {
            "width": width,
            "height": height,
            "mpp": None if entry.mpp is None else list(entry.mpp),
            "type": "BRIGHTFIELD_H_DAB",
            "stains": H_DAB_TEXT,
        },
        "objects": name,
        "selected": list(selected),
        "options": dict(options or {}),
    }
    (folder / "job.json").write_text(json.dumps({**job, **(changes or {})}, ensure_ascii=False), encoding="utf-8")
    return folder


def accept(project: Project, entry: ImageEntry, folder: Path) -> Project:
    """Do to the saved image what the script does with an answer and QuPath saves; return the project, opened anew."""
    answer = json.loads((folder / "answer.json").read_text("utf-8"))
    project.add_classes({one["name"]: None for one in answer["classes"]})
    with entry.edit() as change:
        change.remove(answer["remove"])
        change.lock(answer["lock"])
        change.unlock(answer["unlock"])
        if answer["add"] is not None:
            change.add(read_geojson(folder / answer["add"]))
    return open_project(project.path, backend="native")
