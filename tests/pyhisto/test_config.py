"""Settings from mappings: what is unknown or of another type is refused with its place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from pyhisto.config import from_mapping
from pyhisto.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    size_um: float = 1.0


@dataclass(frozen=True)
class Outer:
    name: str
    steps: int = 3
    fast: bool = False
    kind: Literal["a", "b"] = "a"
    limits: tuple[float, float] = (0.0, 1.0)
    weights: tuple[float, ...] = ()
    threshold: float | None = None
    mpp: float | tuple[float, float] | None = None
    inner: Inner = field(default_factory=Inner)


def test_fills_every_kind_of_field() -> None:
    data = {
        "name": "x",
        "steps": 7,
        "fast": True,
        "kind": "b",
        "limits": [1, 2],
        "weights": [1, 2, 3],
        "threshold": 1,
        "inner": {"size_um": 4},
    }
    filled = from_mapping(Outer, data, "study.toml")
    assert filled == Outer("x", 7, True, "b", (1.0, 2.0), (1.0, 2.0, 3.0), 1.0, None, Inner(4.0))
    assert isinstance(filled.threshold, float)
    assert all(isinstance(value, float) for value in filled.limits)


@pytest.mark.parametrize(("value", "expected"), [(1, 1.0), ([1, 2], (1.0, 2.0)), (None, None)])
def test_every_option_of_a_union_is_tried(value: Any, expected: Any) -> None:
    assert from_mapping(Outer, {"name": "x", "mpp": value}, "w").mpp == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "x", "stepps": 1}, "study.toml: unknown key 'stepps'; expected one of name, steps"),
        ({}, "study.toml: .*name"),
        ({"name": 3}, "study.toml: name is 3; expected a value of the type str"),
        ({"name": "x", "steps": 1.5}, "study.toml: steps is 1.5"),
        ({"name": "x", "steps": True}, "study.toml: steps is True"),
        ({"name": "x", "fast": 1}, "study.toml: fast is 1"),
        ({"name": "x", "kind": "c"}, "study.toml: kind is 'c'; expected one of 'a', 'b'"),
        ({"name": "x", "limits": 3}, "study.toml: limits is 3; expected a list"),
        ({"name": "x", "limits": [1]}, r"study.toml: limits is \[1\]; expected a list of 2"),
        ({"name": "x", "limits": ["a", 1]}, "study.toml: limits is 'a'"),
        ({"name": "x", "threshold": "high"}, "study.toml: threshold is 'high'"),
        ({"name": "x", "threshold": False}, "study.toml: threshold is False"),
        ({"name": "x", "mpp": "fine"}, "study.toml: mpp is 'fine'"),
        ({"name": "x", "inner": {"size": 1}}, "study.toml: inner: unknown key 'size'"),
        ({"name": "x", "inner": 3}, "study.toml: inner is 3"),
    ],
)
def test_what_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(Outer, data, "study.toml")
