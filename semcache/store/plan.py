"""Whether loading KV is faster than computing it: measured read speeds, and the leading part that is worth loading."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TierName = Literal["ram", "disk"]

# The last four loads or so decide, and none counts for more than so many times what was known: a page cache that went
# cold shows within a few loads, a thread that was put aside for a moment does not.
WEIGHT = 0.25
MOST = 4.0
# A tier that is left alone cannot show that it has become faster: every so often one block is read all the same.
PROBE_EVERY = 64


@dataclass(frozen=True)
class Piece:
    """One block that could be loaded."""

    tier: TierName
    size_bytes: int
    num_tokens: int


class Planner:
    """Read speeds of the tiers, as averages in which the newest loads count most. Thread-safe."""

    def __init__(self) -> None:
        self._ms_per_byte: dict[TierName, float] = {}
        self._num_refused = 0
        self._lock = threading.Lock()

    def observe(self, tier: TierName, size_bytes: int, took_ms: float) -> None:
        """Learn from a load; the first one is believed as it is."""
        if size_bytes <= 0 or took_ms < 0:
            return
        seen = took_ms / size_bytes
        with self._lock:
            before = self._ms_per_byte.get(tier) or seen
            self._ms_per_byte[tier] = before + WEIGHT * (min(seen, MOST * before) - before)

    def cost_ms(self, pieces: Sequence[Piece]) -> float:
        """Expected time to load; a tier that was never read counts as free, so that it is tried."""
        with self._lock:
            return sum(self._ms_per_byte.get(piece.tier, 0.0) * piece.size_bytes for piece in pieces)

    def worth_loading(self, pieces: Sequence[Piece], ms_per_token: float) -> int:
        """How many leading pieces to load so that loading them and computing the rest is fastest."""
        gain_ms, best_ms, num = 0.0, 0.0, 0
        for at, piece in enumerate(pieces, start=1):
            gain_ms += piece.num_tokens * ms_per_token - self.cost_ms([piece])
            if gain_ms > best_ms:
                best_ms, num = gain_ms, at
        if num < len(pieces):
            with self._lock:
                self._num_refused += 1
                num += self._num_refused % PROBE_EVERY == 0
        return num
