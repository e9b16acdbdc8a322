"""What everybody may know of the model: the state that it is in, and what stays known of one that has left memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from semcache.daemon.cuts import Cuts
from semcache.daemon.engine.model import ModelInfo
from semcache.daemon.engine.tokenizer import Tokenizer
from semcache.errors import SemcacheError


@dataclass(frozen=True)
class ModelState:
    """What the engine thread is doing about the model; replaced as a whole, so any thread may read it."""

    state: Literal["unloaded", "loading", "ready", "failed"] = "unloaded"
    stage: str | None = None
    progress: float | None = None
    error: SemcacheError | None = None


@dataclass(frozen=True)
class Served:
    """What stays known of a model when it has left memory: enough to tokenise and to find stored answers."""

    info: ModelInfo
    tokenizer: Tokenizer
    numerics: str
    cuts: Cuts
    num_slots: int

    def is_same_model(self, other: Served) -> bool:
        """Whether tokens, KV and logits of one are those of the other: its folder may hold another model by now."""
        mine, theirs = (self.info.fingerprint, self.numerics), (other.info.fingerprint, other.numerics)
        return mine == theirs and self.cuts == other.cuts
