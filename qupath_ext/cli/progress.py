"""Progress bars on stderr, one a stage."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

__all__ = ["StageProgress"]


class StageProgress:
    """Shows how far each stage is; call it with the stage, the number done and the number in all.

    Parameters
    ----------
    enabled
        Show anything at all.
    unit
        What is counted.
    """

    def __init__(self, enabled: bool = True, unit: str = "window") -> None:
        self._enabled = enabled
        self._unit = unit
        self._stage = ""
        self._bar: tqdm[Any] | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Move the bar of a stage to `done` of `total`."""
        if not self._enabled:
            return
        if self._bar is None or stage != self._stage or done < self._bar.n:
            self.close()
            self._stage = stage
        bar = self._bar or tqdm(total=total, desc=stage, unit=self._unit, leave=False)
        bar.update(done - bar.n)
        self._bar = bar

    def close(self) -> None:
        """End the bar that is shown."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
