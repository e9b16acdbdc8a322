"""Incremental decoding: token ids in, text that can no longer change out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"  # what a decoder shows for bytes that are no character yet


class TextStream:
    """The text of one growing answer; holds back half characters and what may be the start of a stop string."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(text for text in stop if text)
        self._ids: list[int] = []
        # ids[anchor:shown] were decoded to known text; decoding from the anchor gives later ids their context, since
        # some decoders treat the first id differently.
        self._anchor = 0
        self._shown = 0
        self._held = ""  # decoded, but a stop string may begin here
        self.stopped = False

    def push(self, token_id: int) -> str:
        """The text that this token made final; "" once a stop string was met."""
        if self.stopped:
            return ""
        self._ids.append(token_id)
        known = self._decode(self._ids[self._anchor : self._shown])
        text = self._decode(self._ids[self._anchor :])
        if len(text) <= len(known) or text.endswith(_REPLACEMENT):
            return ""
        self._anchor, self._shown = self._shown, len(self._ids)
        return self._release(text[len(known) :])

    def flush(self) -> str:
        """The rest, however incomplete; call it once, behind the last token."""
        if self.stopped:
            return ""
        known = self._decode(self._ids[self._anchor : self._shown])
        rest = self._decode(self._ids[self._anchor :])[len(known) :]
        self._shown = len(self._ids)
        text = self._release(rest)
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _release(self, text: str) -> str:
        """Cut at the stop string that is complete first; keep back what could still become one."""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        held_length = max((_overlap(text, stop) for stop in self._stop), default=0)
        final = len(text) - held_length
        self._held = text[final:]
        return text[:final]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
