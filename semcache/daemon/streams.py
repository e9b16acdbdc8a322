"""The answers under way as text: tokens in, what became final out to the client, and why an answer ends.

Engine thread only.
"""

from __future__ import annotations

from semcache.daemon.engine.model import ModelInfo
from semcache.daemon.engine.stream import TextStream
from semcache.daemon.engine.tokenizer import Tokenizer
from semcache.daemon.request import Request


class Streams:
    """One stream for each request that has a slot."""

    def __init__(self) -> None:
        self._streams: dict[str, TextStream] = {}

    def begin(self, request: Request, tokenizer: Tokenizer) -> None:
        self._streams[request.id] = tokenizer.stream(request.sampling.stop)

    def accept(self, request: Request, token: int, info: ModelInfo) -> str | None:
        """Append one token and stream the text that became final; why the answer ends here, None where it goes on."""
        stream = self._streams[request.id]
        if token in info.eos_token_ids:
            request.emit([], stream.flush())
            return "stop"
        request.emit([token], stream.push(token))
        num_output = len(request.output_tokens)
        is_full = request.num_prompt_tokens + num_output >= info.context_tokens
        if not stream.stopped and (num_output >= request.sampling.max_tokens or is_full):
            request.emit([], stream.flush())
            return "stop" if stream.stopped else "length"
        return "stop" if stream.stopped else None

    def forget(self, request: Request) -> None:
        self._streams.pop(request.id, None)
