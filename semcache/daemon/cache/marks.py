"""Pairs of wordings that somebody said do not ask the same: never served for each other again, whatever the policy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from threading import Lock

from semcache.daemon.cache.features import normalised
from semcache.daemon.cache.strategy import is_within


def pair_key(asked: str, stored: str) -> str:
    """Names a pair of wordings: SHA-256 of both, normalised."""
    return hashlib.sha256(f"{normalised(asked)}\x00{normalised(stored)}".encode("utf-8", "surrogatepass")).hexdigest()


class MarkedPairs:
    """The pairs of each scope, read once from `load` and kept through `add`. Thread-safe.

    `load` gives None for a scope that cannot be read now, and `add` False for what could not be kept.
    """

    def __init__(
        self,
        load: Callable[[str], frozenset[str] | None] = lambda scope: frozenset(),
        add: Callable[[str, str], bool] = lambda scope, key: True,
    ) -> None:
        self._load = load
        self._add = add
        self._scopes: dict[str, set[str]] = {}
        self._lock = Lock()

    def holds(self, scope: str, asked: str, stored: str) -> bool | None:
        """None where that cannot be read now; then the pair may well be one."""
        pairs = self._pairs(scope)
        if pairs is None:
            return None
        return bool(pairs) and pair_key(asked, stored) in pairs

    def mark(self, scope: str, asked: str, stored: str) -> bool:
        """From now on, and after a restart; False where it is not kept for that."""
        key = pair_key(asked, stored)
        is_kept = self._add(scope, key)  # first: a scope that is forgotten and read again meanwhile has it, too
        if (pairs := self._pairs(scope)) is not None:
            pairs.add(key)
        return is_kept

    def forget_scope(self, scope: str) -> None:
        """The scope and its namespaces were cleared; the next use reads the store again."""
        with self._lock:
            for name in [name for name in self._scopes if is_within(name, scope)]:
                del self._scopes[name]

    def _pairs(self, scope: str) -> set[str] | None:
        with self._lock:
            if scope not in self._scopes:
                loaded = self._load(scope)
                if loaded is None:
                    return None  # read again the next time: an empty set would forget every mark
                self._scopes[scope] = set(loaded)
            return self._scopes[scope]
