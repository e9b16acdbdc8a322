"""The model in memory: loaded when it is needed, let go when it was idle for long. Acts on the engine thread only."""

from __future__ import annotations

import logging
from collections.abc import Callable

from semcache.daemon.engine.engine import Engine
from semcache.daemon.served import ModelState, Served
from semcache.errors import ModelLoadError, SemcacheError

log = logging.getLogger("semcache.engine")

Progress = Callable[[str, float | None], None]
LoadEngine = Callable[[Progress], Engine]


class Resident:
    """The engine while its model is in memory; `model` and `served` may be read from any thread."""

    def __init__(
        self, load: LoadEngine, *, on_change: Callable[[], None], keep_alive_s: float, clock: Callable[[], float]
    ) -> None:
        self._load = load
        self._on_change = on_change
        self._keep_alive_s = keep_alive_s
        self._clock = clock
        self._used_at = clock()
        self.engine: Engine | None = None
        self.model = ModelState()
        self.served: Served | None = None  # stays when the model goes: enough to find stored answers

    def used(self) -> None:
        """The idle time begins again."""
        self._used_at = self._clock()

    @property
    def idle_left_s(self) -> float | None:
        """How long the model stays where nothing comes; None where it is not there or never goes."""
        if self.engine is None or not self._keep_alive_s:
            return None
        return max(0.0, self._used_at + self._keep_alive_s - self._clock())

    def load(self) -> None:
        """Nothing where it is loaded; a failure is a state."""
        if self.engine is not None:
            return
        self._become(ModelState("loading", "starting", None))
        try:
            engine = self._load(lambda stage, share: self._become(ModelState("loading", stage, share)))
        except SemcacheError as error:
            self._become(ModelState("failed", error=error.bare()))
        except Exception as error:
            log.exception("loading the model failed")
            self._become(ModelState("failed", error=ModelLoadError(f"the model cannot be loaded: {error}")))
        else:
            self.engine = engine
            self.served = Served(engine.info, engine.tokenizer, engine.numerics, engine.cuts, engine.num_slots)
            self.used()
            self._become(ModelState("ready"))

    def unload(self) -> None:
        """Free its memory; nothing where it is not loaded. It is gone even where the device refuses to say so."""
        engine, self.engine = self.engine, None
        if engine is None:
            return
        log.info("unloading %s", engine.info.name)
        try:
            engine.close()
        finally:
            self._become(ModelState("unloaded"))

    def _become(self, state: ModelState) -> None:
        self.model = state
        self._on_change()
