"""What a long wait looks like on stderr: a bar on a terminal, a line per stage elsewhere, nothing with --quiet."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from semcache.cli import render
from semcache.cli.options import Options

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


class Progress:
    """The current step of one wait; leaves nothing behind on a terminal."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._said: set[str] = set()
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def show(self, text: str, fraction: float | None = None) -> None:
        """Say what is happening; in a log or a pipe each step is said once, however often it advances."""
        if self.options.quiet:
            return
        if sys.stderr.isatty():
            self._show_bar(text, fraction)
            return
        step = text.rstrip("0123456789 .%…")
        if step not in self._said:
            self._said.add(step)
            render.note(self.options, text)

    def _show_bar(self, text: str, fraction: float | None) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, SpinnerColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24))
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
            self._task = self._bar.add_task(text, total=None)
            self._bar.start()
        assert self._task is not None
        changes: dict[str, Any] = {} if fraction is None else {"total": 1.0, "completed": fraction}
        self._bar.update(self._task, description=text, **changes)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
