"""Path-object tables <-> GeoJSON in QuPath's flavour.

What is written is read by QuPath 0.3 to 0.8 with the same objects, ids (0.4 and newer), classes, colours, locks,
measurements and planes. What is read may come from QuPath 0.2 to 0.8 or from any program that writes GeoJSON.
Coordinates are full-resolution pixels, x right, y down, as QuPath shows them.
"""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qupath_ext.errors import FormatError

if TYPE_CHECKING:
    import geopandas as gpd

__all__ = ["geojson_bytes", "parse_geojson", "read_geojson", "write_geojson"]

DECIMALS = 2
GZIP_LEVEL = 4
ENDINGS = (".geojson", ".json", ".geojson.gz", ".json.gz", ".zip")


def write_geojson(
    path: str | Path,
    objects: gpd.GeoDataFrame,
    *,
    colors: Mapping[str, int | None] | None = None,
    nested: bool = False,
    decimals: int = DECIMALS,
    skip_missing: bool = False,
) -> None:
    """Write a path-object table as GeoJSON, all or nothing.

    A measurement that is NaN is left out (QuPath 0.4 cannot read one). Class probabilities have no place in QuPath's
    GeoJSON.

    Parameters
    ----------
    path
        File ending in ``.geojson`` or ``.json``, these with ``.gz``, or ``.zip`` (one entry).
    objects
        The table.
    colors
        Colour of each class, signed packed ARGB, such as ``Project.classes``. A class without one gets QuPath's
        standard colour, or one that follows from its name: QuPath refuses a class without colour.
    nested
        Put children into their parents (QuPath 0.4 and newer read that; 0.3 would lose the children). Otherwise all
        objects stand beside each other, and each names its parent as ``parentId``, which QuPath ignores.
    decimals
        Decimals of the coordinates: 2, as QuPath writes and as QuPath 0.6 and newer keep, moves a coordinate by at
        most 0.005 px.
    skip_missing
        Leave objects without geometry out. They are refused otherwise: QuPath exports them, but reads no file with one.

    Raises
    ------
    ObjectTableError
        If a geometry is missing, of a kind that QuPath does not read, or invalid; names the object.
    FormatError
        If the ending is not known.
    """
    from qupath_ext.exchange.geojson_write import encode

    path = Path(path)
    if not path.name.lower().endswith(ENDINGS):
        raise FormatError(f"file name {path.name!r}", expected=f"an ending among {', '.join(ENDINGS)}")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        _write(
            temporary,
            path,
            encode(objects, colors=colors or {}, nested=nested, decimals=decimals, skip_missing=skip_missing),
        )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(temporary: Path, path: Path, pieces: Iterable[bytes]) -> None:
    name = path.name.lower()
    if name.endswith(".zip"):
        entry = path.name[: -len(".zip")]
        entry = entry if entry.lower().endswith((".geojson", ".json")) else entry + ".geojson"
        with (
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=GZIP_LEVEL) as archive,
            archive.open(entry, "w", force_zip64=True) as file,
        ):
            file.writelines(pieces)
    elif name.endswith(".gz"):
        with gzip.open(temporary, "wb", compresslevel=GZIP_LEVEL) as file:
            file.writelines(pieces)
    else:
        with temporary.open("wb") as plain:
            plain.writelines(pieces)


def geojson_bytes(
    objects: gpd.GeoDataFrame,
    *,
    colors: Mapping[str, int | None] | None = None,
    nested: bool = False,
    decimals: int = DECIMALS,
    skip_missing: bool = False,
) -> bytes:
    """Return a path-object table as GeoJSON text; see :func:`write_geojson`."""
    from qupath_ext.exchange.geojson_write import encode

    return b"".join(encode(objects, colors=colors or {}, nested=nested, decimals=decimals, skip_missing=skip_missing))


def read_geojson(path: str | Path, *, fix_invalid: bool = False, drop_flat: bool = False) -> gpd.GeoDataFrame:
    """Read GeoJSON into a path-object table.

    Read are a feature collection, an array of features, one feature, or bare geometries, plain, as gzip, or as a zip
    archive with one such file. Keys that are not known are ignored; of a key that stands twice, the last counts. An
    object without type is an annotation. An id that is no UUID is replaced by a new one. Ellipses and TMA cores
    become the ellipse in their bounds, as in QuPath.

    Parameters
    ----------
    path
        The file.
    fix_invalid
        Repair invalid polygons (``shapely.make_valid``; parts without area are dropped) instead of refusing them.
        QuPath 0.6 and newer refuse them too.
    drop_flat
        With `fix_invalid`: an object whose polygon has no area stays, without a geometry, instead of being refused.

    Returns
    -------
    geopandas.GeoDataFrame
        The table, parents before children; ``parent_id`` for what was nested. Its ``attrs["class_colors"]`` has the
        colours of the classes, signed packed ARGB by full name.

    Raises
    ------
    FormatError
        If the file is no GeoJSON, or a feature is malformed; names the feature and what is wrong.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error.strerror})", expected="a GeoJSON file") from error
    return parse_geojson(data, source=str(path), fix_invalid=fix_invalid, drop_flat=drop_flat)


def parse_geojson(
    data: bytes, *, source: str = "GeoJSON", fix_invalid: bool = False, drop_flat: bool = False
) -> gpd.GeoDataFrame:
    """Read GeoJSON text, plain or compressed; `source` names it in messages. See :func:`read_geojson`."""
    from qupath_ext.exchange.geojson_read import decode

    return decode(_plain(data, source), source, fix_invalid=fix_invalid, drop_flat=drop_flat)


def _plain(data: bytes, source: str) -> bytes:
    """Undo gzip or zip, told by the first bytes."""
    try:
        if data.startswith(b"\x1f\x8b"):
            return gzip.decompress(data)
        if data.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                entries = [entry for entry in archive.infolist() if not entry.is_dir()]
                entries = [entry for entry in entries if not entry.filename.startswith("__MACOSX/")]
                if len(entries) != 1:
                    raise FormatError(f"{source} has {len(entries)} files in it", expected="a zip archive with one")
                return archive.read(entries[0])
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise FormatError(f"{source} is damaged ({error})", expected="a whole gzip or zip file") from error
    return data
