"""How far a replay is, on stderr: one live line on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from semcache.replay.record import RequestRecord
from semcache.replay.summary import COMPUTE_HITS

if TYPE_CHECKING:
    from rich.live import Live

PLAIN_EVERY_S = 5.0
LIVE_EVERY_S = 0.1


class Progress:
    """Counts what is finished and shows it; `quiet` shows nothing, `plain` never uses a live line."""

    def __init__(
        self, *, quiet: bool = False, plain: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._quiet = quiet
        self._is_live = not quiet and not plain and sys.stderr.isatty()
        self._clock = clock
        self._live: Live | None = None
        self._label = ""
        self._total = 0
        self._started = self._shown = clock()
        self._outcomes: Counter[str] = Counter()
        self._errors = 0
        self._checked = self._wrong = 0

    def start(self, label: str, total: int) -> None:
        """A new pass of `total` requests."""
        self._label, self._total = label, total
        self._outcomes.clear()
        self._errors = self._checked = self._wrong = 0
        self._started = self._shown = self._clock()
        if self._is_live and self._live is None:
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True)
            self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)
            self._live.start()

    def update(self, record: RequestRecord) -> None:
        if record.reply:
            self._outcomes[record.reply.outcome] += 1
        else:
            self._errors += 1
        if record.wrong is not None:
            self._checked += 1
            self._wrong += record.wrong
        now = self._clock()
        if not self._quiet and now - self._shown >= (LIVE_EVERY_S if self._is_live else PLAIN_EVERY_S):
            self._shown = now
            self._show()

    def note(self, text: str) -> None:
        """Something the user should know; not part of the data."""
        if not self._quiet:
            self._above(text)

    def warn(self, text: str) -> None:
        """Something that needs a hand; said even with --quiet."""
        self._above(text)

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def line(self) -> str:
        """`cold x4: 352/500  24.1/s  eta 6 s  errors 0  hits 61.4 %  …`."""
        num = self._outcomes.total() + self._errors
        seconds = self._clock() - self._started
        rate = num / seconds if seconds > 0 else 0.0
        parts = [f"{self._label}: {num}/{self._total}", f"{rate:.1f}/s"]
        if rate and num < self._total:
            parts.append(f"eta {(self._total - num) / rate:.0f} s")
        parts.append(f"errors {self._errors}")
        if num:
            hits = sum(self._outcomes[name] for name in COMPUTE_HITS)
            parts.append(f"reused {hits / num:.1%}")
            parts += [f"{name} {count}" for name, count in sorted(self._outcomes.items())]
        if self._checked:
            parts.append(f"wrong hits {self._wrong}/{self._checked}")
        return "  ".join(parts)

    def _show(self) -> None:
        if self._live is None:
            self._above(self.line())
            return
        from rich.text import Text

        self._live.update(Text(self.line(), no_wrap=True, overflow="ellipsis"), refresh=True)

    def _above(self, text: str) -> None:
        if self._live is not None:
            from rich.text import Text

            self._live.console.print(Text(text))
        else:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
