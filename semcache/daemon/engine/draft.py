"""What is worth putting before the model as a draft: a donor's answer, from its start and again wherever it fits.

Pure Python. It decides which tokens to propose and how many; whether they are right, the model decides. No pass is paid
without evidence that the donor and the answer run together, so a useless donor costs nothing. Where the first donor
has nothing more to say, another that begins exactly as the answer does takes its place.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from semcache.daemon.request import Donor

# One equal token is evidence only this close to where the donor is expected; farther away it takes two.
_NEAR_TOKENS = 2
_MAX_COMPARED = 8  # a longer match is no better evidence
# After a mismatch behind this many accepted tokens, one word differs more often than the rest does.
_TRUSTED_RUN = 4
_MIN_OPENING = 2  # equal tokens before another donor is taken
_FIRST_TOKENS = 16  # behind evidence found on the way; the start of the donor is proposed as a whole
# Where passes cost most, a row more costs a fiftieth of a decode step (135M parameters on two cores: decode 46 ms,
# verifying 8 tokens 71 ms, 32 tokens 90 ms), so very short drafts save nothing.
_MIN_TOKENS = 8
# Passes that brought nothing: this many are free, later ones must be earned, one for four accepted tokens.
_DONOR_CREDIT = 3.0
_PROMPT_CREDIT = 2.0
_CREDIT_PER_TOKEN = 0.25
_MAX_CREDIT = 4.0
_PROMPT_EVIDENCE = 3
_MAX_PROMPT_TOKENS = 8


@dataclass(frozen=True)
class Proposal:
    """Tokens that may follow the newest output token; `start` is where they begin in their source."""

    tokens: tuple[int, ...]
    source: Literal["donor", "prompt"]
    start: int


class Draft:
    """The drafts of one request: donors' answers, where there are any, and what the prompt itself repeats."""

    def __init__(self, donor: Donor | None, prompt_tokens: Sequence[int]) -> None:
        self._waiting: list[Donor] = []
        self._take(donor)
        self._prompt = _Source(tuple(prompt_tokens), _PROMPT_CREDIT, _MAX_PROMPT_TOKENS, evidence=_PROMPT_EVIDENCE)
        self._proposed_at = 0  # output tokens when the last proposal was made
        self._tied_at: int | None = None

    def _take(self, donor: Donor | None) -> None:
        self.donor = donor  # whose answer is being proposed
        self._donor = _Source(donor.tokens if donor is not None else (), _DONOR_CREDIT, _FIRST_TOKENS)
        self._offset = 0  # donor index minus output index where the two ran together last
        self._run = (0, 0)  # output tokens behind the last donor pass, and how many tokens it accepted
        self._rejected: set[int] = set()  # donor indices
        self._is_fresh = True  # nothing of it was proposed yet

    def offer(self, donors: Sequence[Donor]) -> None:
        """More donors, the most promising first."""
        known = {donor.tokens for donor in (self.donor, *self._waiting) if donor is not None}
        for donor in donors:
            if donor.tokens not in known:
                known.add(donor.tokens)
                self._waiting.append(donor)

    def propose(self, output_tokens: Sequence[int], room: int, *, is_alone: bool = True) -> Proposal | None:
        """At most `room` tokens that are worth a pass, or None for a plain decode step.

        `is_alone` is false in a batch: there a short draft from the prompt costs the others more than it gains.
        """
        num_output = len(output_tokens)
        if room < 2 or num_output == self._tied_at:
            return None
        proposal = self._from_donor(output_tokens, room)
        if proposal is None and self._switch(output_tokens):
            proposal = self._from_donor(output_tokens, room)
        if proposal is None and is_alone:
            proposal = self._from_prompt(output_tokens, room)
        self._proposed_at = num_output
        return proposal

    def feedback(self, proposal: Proposal, num_accepted: int, *, is_tied: bool) -> None:
        """What the model made of the last proposal; after a tie the next token is left to plain decode."""
        num_output = self._proposed_at + num_accepted + (not is_tied)
        self._tied_at = num_output if is_tied else None
        if proposal.source == "prompt":
            self._prompt.learn(num_accepted)
            return
        self._donor.learn(num_accepted)
        if not is_tied or not num_accepted:
            self._donor.num_tokens = max(_MIN_TOKENS, 2 * num_accepted)
        else:  # nothing was wrong with the draft
            self._donor.num_tokens = max(self._donor.num_tokens, len(proposal.tokens))
        self._run = (num_output, num_accepted)
        if num_accepted:
            self._offset = proposal.start - self._proposed_at
        if num_accepted < len(proposal.tokens) and not is_tied:
            self._rejected.add(proposal.start + num_accepted)

    def _switch(self, output_tokens: Sequence[int]) -> bool:
        """Go over to the first waiting donor that begins with the whole output; one equal token is not enough."""
        num_output = len(output_tokens)
        if num_output < _MIN_OPENING:
            return False
        begins = tuple(output_tokens)
        # What differs once never begins with the output again, and what is no longer has nothing more to say.
        self._waiting = [
            donor for donor in self._waiting if len(donor.tokens) > num_output and donor.tokens[:num_output] == begins
        ]
        if not self._waiting:
            return False
        self._take(self._waiting.pop(0))
        return True

    def _from_donor(self, output_tokens: Sequence[int], room: int) -> Proposal | None:
        donor, num_output = self._donor, len(output_tokens)
        if donor.credit <= 0:
            return None
        expected = num_output + self._offset
        is_trusted = self._run[0] == num_output and self._run[1] >= _TRUSTED_RUN
        start = self._aligned(output_tokens, expected) if is_trusted else self._evidence(output_tokens, expected)
        if start is None:
            return None
        # So far the answer is the donor's, word for word.
        is_whole = self._is_fresh and start == num_output and donor.tokens[:start] == tuple(output_tokens)
        self._is_fresh = False
        length = min(room, len(donor.tokens) if is_whole else donor.num_tokens)
        return Proposal(donor.tokens[start : start + length], "donor", start)

    def _aligned(self, output_tokens: Sequence[int], expected: int) -> int | None:
        """Behind a long run: one token differs, if not the donor says one or two more than the model."""
        behind = self._donor.behind(output_tokens)
        if expected >= len(self._donor.tokens):
            return None
        return next((start for start in range(expected, expected + 1 + _NEAR_TOKENS) if start in behind), expected)

    def _evidence(self, output_tokens: Sequence[int], expected: int) -> int | None:
        """The donor index that continues the output: the expected one, else behind the longest match, then the nearest.

        An index whose token was rejected is not tried again: repetitive text would lead back to it for ever.
        """
        starts = [start for start in self._donor.behind(output_tokens) if start not in self._rejected]
        if expected in starts:
            return expected
        found, best = None, (1, -_NEAR_TOKENS - 1)  # one equal token counts only nearby
        for start in starts:
            length, distance = _num_equal(output_tokens, self._donor.tokens, start), abs(start - expected)
            if (length, -distance) > best:
                found, best = start, (length, -distance)
        return found

    def _from_prompt(self, output_tokens: Sequence[int], room: int) -> Proposal | None:
        prompt = self._prompt
        if prompt.credit <= 0:
            return None
        starts = prompt.behind(output_tokens)
        if not starts:
            return None
        # What was said last is closest to what is meant, but a repetition at the very end has little behind it.
        length = min(room, prompt.num_tokens)
        start = next((start for start in reversed(starts) if start + length <= len(prompt.tokens)), starts[0])
        return Proposal(prompt.tokens[start : start + length], "prompt", start)


class _Source:
    """Tokens to propose from, how many at once, and what is left of the trust in them."""

    def __init__(self, tokens: tuple[int, ...], credit: float, num_tokens: int, evidence: int = 1) -> None:
        self.tokens = tokens
        self.credit = credit
        self.num_tokens = num_tokens
        self._evidence = evidence
        self._index: dict[tuple[int, ...], list[int]] | None = None

    def behind(self, output_tokens: Sequence[int]) -> Sequence[int]:
        """Every place whose last `evidence` tokens are those of the output and that has a token to propose."""
        if len(output_tokens) < self._evidence:
            return ()
        if self._index is None:
            self._index = {}
            for stop in range(self._evidence, len(self.tokens)):
                self._index.setdefault(self.tokens[stop - self._evidence : stop], []).append(stop)
        return self._index.get(tuple(output_tokens[-self._evidence :]), ())

    def learn(self, num_accepted: int) -> None:
        """A pass that brought nothing costs credit, accepted tokens earn some."""
        earned = num_accepted * _CREDIT_PER_TOKEN if num_accepted else -1.0
        self.credit = min(self.credit + earned, _MAX_CREDIT)


def usable(donor: Donor | None, vocab_size: int, eos_token_ids: Collection[int]) -> Donor | None:
    """The donor up to its first token that cannot be part of an answer; None where nothing is left."""
    if donor is None:
        return None
    for i, token in enumerate(donor.tokens):
        if token in eos_token_ids or not 0 <= token < vocab_size:
            donor = replace(donor, tokens=donor.tokens[:i], has_ended=token in eos_token_ids)
            break
    return donor if donor.tokens else None


def _num_equal(output_tokens: Sequence[int], donor_tokens: Sequence[int], stop: int) -> int:
    """How many tokens before donor index `stop` are the last ones of the output, at most 8."""
    limit = min(_MAX_COMPARED, stop, len(output_tokens))
    return next((n for n in range(limit) if donor_tokens[stop - 1 - n] != output_tokens[-1 - n]), limit)
