"""The pieces that pages are made of: the frame of a page, tables, pictures, numbers.

Text from outside (names, notes, settings) is escaped, pictures are part of the file, and a content security policy
forbids the page to load anything.
"""

from __future__ import annotations

import base64
import html
import io
import math
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from pyhisto.errors import ConfigError
from qupath_ext.errors import ProjectError

__all__ = ["DISCLAIMER", "count", "decimal", "document", "figure", "pairs", "table", "text", "write_page"]

_JPEG_QUALITY = 90
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
DISCLAIMER = "Research use only. Not for diagnosis."


def write_page(path: Path, page: str) -> None:
    """Write a page under a temporary name first, then put it in place.

    Raises
    ------
    ProjectError
        If the file cannot be written; one that was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8", newline="\n")
        temporary.replace(path)
    except OSError as error:
        raise ProjectError(
            f"report {path} cannot be written ({error.strerror})", remedy="check the folder and its free space"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def document(title: str, header: str, sections: Sequence[str]) -> str:
    """Return a whole page; the title is text, the rest HTML."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>",
            header,
            "<main>",
            *sections,
            f"</main>\n<footer><p><strong>{DISCLAIMER}</strong></p></footer>\n</body>\n</html>\n",
        ]
    )


def figure(png: bytes, alt: str, caption: str) -> str:
    """Return a picture with its caption, which is HTML; `alt` is text.

    Raises
    ------
    ConfigError
        If the picture cannot be read.
    """
    uri, width, height = _data_uri(png)
    return (
        f'<figure><img src="{uri}" alt="{text(alt)}" width="{width}" height="{height}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _data_uri(png: bytes) -> tuple[str, int, int]:
    """Return a picture as a data URI, width and height; photographs become JPEG, which is several times smaller."""
    try:
        image = Image.open(io.BytesIO(png)).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ConfigError(f"picture of {len(png)} bytes cannot be read", expected="a PNG file's bytes") from error
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=_JPEG_QUALITY, subsampling=0, optimize=True)
    kind, data = min(("png", png), ("jpeg", stream.getvalue()), key=lambda pair: len(pair[1]))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}", image.width, image.height


def pairs(title: str, key: str, value: str, rows: Mapping[str, str]) -> str:
    """Return a small table of names and values, which are text; nothing if there are none."""
    if not rows:
        return ""
    body = [[text(name), f'<span class="data">{text(words)}</span>'] for name, words in rows.items()]
    return f'<div class="together"><h3>{title}</h3>{table([key, value], body, kind="pairs")}</div>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "", kind: str = "numbers") -> str:
    """Return a table whose first column names the row; cells are HTML already."""
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    above = f"<caption>{caption}</caption>" if caption else ""
    return f'<table class="{kind}">{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def text(value: object) -> str:
    """Return something as text that is safe in HTML."""
    return html.escape(str(value), quote=True)


def decimal(value: float, digits: int) -> str:
    """Return a number with so many decimals; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def count(value: float) -> str:
    r"""Return a whole number with narrow spaces between thousands; a dash for NaN.

    >>> count(12431).replace("\u202f", "_")
    '12_431'
    """
    return "–" if math.isnan(value) else f"{value:,.0f}".replace(",", "\u202f")
