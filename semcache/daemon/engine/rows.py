"""Whether rows are on their own: the same bits for a row, wherever in a pass it lies and however many there are.

Outside of attention a layer works row by row. Where its kernels do too, one pass may take chunks of several prompts,
several chunks of one, and the rows of running streams: each gets what a pass of its own would give it, and the weights
are read once for all. That is up to the library and to the number of rows, so each number is tried before it is used.

In float32 only: there another order of summing up shows in some number of every row. 16 bits round it away for most
rows, and a trial that sees nothing would prove nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semcache.daemon.engine.forward import Forward
from semcache.daemon.engine.llama import LlamaForward, is_uniform

_STEP = 1  # rows that are tried lie so many places from where they were known: in the end all places are compared


class Rows:
    """What has been found out about numbers of rows; for a forward that is written out, in float32."""

    def __init__(self, forward: Forward, chunk_tokens: int) -> None:
        self._alike: dict[int, bool] = {}
        weight: Tensor = forward.model.get_input_embeddings().weight
        is_telling = weight.dtype == torch.float32 and is_uniform(forward.model)
        self._forward = forward if isinstance(forward, LlamaForward) and is_telling else None
        if self._forward is None:
            return
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(chunk_tokens, weight.shape[1], generator=generator)
        self._states = states.to(weight.device)
        self._positions = torch.arange(chunk_tokens, device=weight.device)
        with torch.inference_mode():
            self._known = self._forward.rows(self._states, self._positions)

    def are_alike(self, num_rows: int) -> bool:
        """Whether so many rows have the bits of a whole chunk's; takes one layer's time when asked first."""
        if num_rows not in self._alike:
            self._alike[num_rows] = self._try(num_rows)
        return self._alike[num_rows]

    @torch.inference_mode()
    def _try(self, num_rows: int) -> bool:
        if self._forward is None:
            return False
        order = (torch.arange(num_rows, device=self._positions.device) + _STEP) % len(self._positions)
        found = self._forward.rows(self._states[order], self._positions[order])
        return all(torch.equal(rows, known[order]) for rows, known in zip(found, self._known, strict=True))
