"""Where a prompt's KV may be cut: what lies behind is computed, and has to come out as when all of it was."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cuts:
    """KV is reused up to a multiple of `every` tokens: the prefill's chunk in `bitwise`, 1 in `rounding`.

    Computing only the `last_rows` of a chunk gives its last token the same logits; not in a prompt's first chunk.
    """

    every: int
    last_rows: int

    @property
    def are_anywhere(self) -> bool:
        return self.every == 1

    def last(self, num_tokens: int) -> int:
        """The last place for a cut within so many tokens."""
        return num_tokens // self.every * self.every

    def start(self, num_covered: int, num_prompt_tokens: int) -> int:
        """Where to begin to compute a prompt whose first tokens have KV, and whose logits are wanted."""
        if num_covered < num_prompt_tokens:
            return self.last(num_covered)
        cut = self.last(num_prompt_tokens - 1)
        is_whole_chunk = num_prompt_tokens - cut == self.every
        return num_prompt_tokens - self.last_rows if cut and is_whole_chunk else cut
