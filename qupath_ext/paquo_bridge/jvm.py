"""The Java virtual machine with QuPath in it: started once, quiet on standard output, its errors in one line."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from qupath_ext.errors import ProjectError
from qupath_ext.native.emitter import emit_stream
from qupath_ext.native.tokens import Content
from qupath_ext.paquo_bridge import find_qupath

__all__ = [
    "QUPATH",
    "TO_NATIVE",
    "deserialise",
    "java_class",
    "java_errors",
    "java_texts",
    "qupath_version",
    "serialise",
    "start_qupath",
]

QUPATH = "qupath.lib."
OLDEST = (0, 5)
TO_NATIVE = "use the native backend (--backend native)"
JAVA_OPTIONS = (
    "-Djava.awt.headless=true",
    "-XX:+DisplayVMOutputToStderr",  # the JVM's own warnings go to standard output otherwise
    "-Xrs",  # Ctrl-C stays with Python
    "--enable-native-access=ALL-UNNAMED",  # JPype loads its library; newer Java warns otherwise
)


@cache
def start_qupath() -> str:
    """Start the JVM, unless it runs, and return QuPath's version, such as ``"0.6.0"``.

    Paquo's settings choose the installation and the options of Java; ``PAQUO_JAVA_OPTS="-Xmx16g"`` gives it more
    memory than Paquo's default, half of what the machine has. Java's standard output becomes standard error before
    anything is logged, so that what a command prints stays pure, and QuPath logs warnings only (Paquo sets it to
    DEBUG).

    Raises
    ------
    ProjectError
        If there is no QuPath, its Java does not start, or it is too old.
    """
    if find_qupath() is None:
        raise ProjectError(
            "no QuPath is found",
            expected="an installation",
            remedy=f"set PAQUO_QUPATH_DIR to its folder, or {TO_NATIVE}",
        )
    from paquo._config import settings, to_kwargs
    from paquo.jpype_backend import start_jvm

    options = to_kwargs(settings)
    given = options["java_opts"]
    options["java_opts"] = [*(shlex.split(given) if isinstance(given, str) else given), *JAVA_OPTIONS]
    try:
        found = start_jvm(finder_kwargs=options)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ProjectError(
            f"QuPath's Java does not start ({error})",
            remedy=f"see PAQUO_JAVA_OPTS and PAQUO_QUPATH_DIR, or {TO_NATIVE}",
        ) from error
    system = java_class("java.lang.System")
    system.setOut(system.err)
    version = str(found)
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        raise ProjectError(f"QuPath {version}", expected="0.5 or newer", remedy=f"update QuPath, or {TO_NATIVE}")
    from paquo.java import LogManager

    LogManager.setWarn()
    return version


def qupath_version() -> str:
    """Return what reads and writes, such as ``"paquo 0.9.0 with QuPath 0.6.0"``; starts the JVM."""
    from importlib.metadata import version

    return f"paquo {version('paquo')} with QuPath {start_qupath()}"


def java_class(name: str) -> Any:
    """Return a Java class by its full name; the JVM must run."""
    from paquo.jpype_backend import JClass

    return JClass(name)


def java_texts(texts: Sequence[str]) -> Any:
    """Return a Java list of strings."""
    from jpype import JArray

    return java_class("java.util.Arrays").asList(JArray(java_class("java.lang.String"))(texts))


@contextmanager
def java_errors(doing: str) -> Iterator[None]:
    """Turn what Java throws into a :class:`ProjectError` of one line.

    Parameters
    ----------
    doing
        What QuPath was to do, to come after "QuPath could not".
    """
    from jpype import JException

    try:
        yield
    except JException as error:
        cause = error
        while isinstance(cause, java_class("java.lang.reflect.InvocationTargetException")) and cause.getCause():
            cause = cause.getCause()
        text = str(cause.toString()).splitlines()[0]
        if "OutOfMemoryError" in text:
            raise ProjectError(
                f"QuPath could not {doing}: Java has not enough memory", remedy="set PAQUO_JAVA_OPTS='-Xmx16g' or more"
            ) from error
        raise ProjectError(f"QuPath could not {doing}: {text}", remedy=f"see the log above, or {TO_NATIVE}") from error


# ---------------------------------------------------------------------- across the border
def deserialise(contents: Iterable[Content], n: int) -> list[Any]:
    """Return `n` Java objects that QuPath's own classes read from tokens.

    They go through a temporary file: copying a large array between Python and Java byte by byte takes longer. QuPath's
    filter of classes holds, so nothing but Java's own classes and QuPath's is made. ``readObject`` is called by
    reflection: a stream finds classes by the class loader of who calls it, and a call from Python has none.
    """
    with tempfile.TemporaryDirectory(prefix="qupath-ext-") as folder:
        path = Path(folder) / "objects"
        with path.open("wb") as file:
            emit_stream(contents, file.write)
        file_stream = java_class("java.io.FileInputStream")(str(path))
        try:
            buffered = java_class("java.io.BufferedInputStream")(file_stream, 1 << 20)
            stream = java_class(QUPATH + "io.PathIO").createObjectInputStream(buffered)
            read = java_class("java.io.ObjectInputStream").class_.getMethod("readObject")
            return [read.invoke(stream) for _ in range(n)]
        finally:
            file_stream.close()


def serialise(objects: Sequence[Any]) -> bytes:
    """Return Java objects as one stream of Java's serialisation, written by their own classes."""
    with tempfile.TemporaryDirectory(prefix="qupath-ext-") as folder:
        path = Path(folder) / "objects"
        file_stream = java_class("java.io.FileOutputStream")(str(path))
        try:
            buffered = java_class("java.io.BufferedOutputStream")(file_stream, 1 << 20)
            stream = java_class("java.io.ObjectOutputStream")(buffered)
            for item in objects:
                stream.writeObject(item)
            stream.flush()
        finally:
            file_stream.close()
        return path.read_bytes()
