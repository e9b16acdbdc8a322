"""One pass of the model over one step, as prefill and decode call it: KV goes to the pool, logits come out."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from semcache.daemon.engine.attention import running
from semcache.daemon.engine.kv import StepCache


class Forward(Protocol):
    """How a loaded model computes; every way is checked against the model's own at load."""

    model: PreTrainedModel

    def __call__(self, tokens: Tensor, cache: StepCache, num_logits: int) -> Tensor | None:
        """Write the KV of `tokens` [batch, tokens] through `cache`, at the positions of its step.

        Returns the logits behind the last `num_logits` tokens of each row, [batch, num_logits, vocab], or None where
        none are asked for: then the vocabulary product is left out.
        """


class Pass(NamedTuple):
    """What a `Forward` is called with."""

    tokens: Tensor  # [batch, tokens]
    cache: StepCache
    num_logits: int


class ModuleForward:
    """The modules that transformers gives a model, with our attention."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __call__(self, tokens: Tensor, cache: StepCache, num_logits: int) -> Tensor | None:
        called = {
            "input_ids": tokens, "position_ids": cache.step.position_ids, "past_key_values": cache, "use_cache": True,
        }  # fmt: skip
        with running(cache.step):
            if not num_logits:
                self.model.base_model(**called)
                return None
            logits: Tensor = self.model(**called, logits_to_keep=num_logits).logits
        return logits


def token_ids(tokens: list[list[int]], cache: StepCache) -> Tensor:
    """Tokens of every row, on the device of the step."""
    return torch.tensor(tokens, device=cache.step.position_ids.device)
