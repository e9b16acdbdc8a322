"""The drafts of the requests under way: what each proposes next, and where another donor may come from.

Pure Python, engine thread only. `engine/draft.py` decides what is worth a pass; this file keeps it for every request.
"""

from __future__ import annotations

from collections.abc import Sequence

from semcache.daemon.engine.draft import Draft, Proposal, usable
from semcache.daemon.request import Donor, Request

OPENING_TOKENS = 3  # as many as the store finds answers by


class Drafts:
    """One for the loop; a request without any is never proposed for."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._drafts: dict[str, Draft] = {}
        self._proposals: dict[str, Proposal] = {}  # of the requests that wait for their verification

    @property
    def num_live(self) -> int:
        return len(self._drafts) + len(self._proposals)

    def allow(self, request: Request) -> None:
        """Drop the donors of a request that may not have any; before the engine begins it."""
        if not (self._enabled and request.options.mode.allows_draft):
            request.donor, request.more_donors, request.seek_donors = None, (), None

    def begin(self, request: Request, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """Start the drafts of a request that the engine has begun."""
        if self._enabled and request.options.mode.allows_draft:
            self._drafts[request.id] = Draft(request.donor, request.prompt_tokens)
            self.offer(request, request.more_donors, vocab_size, eos_token_ids)

    def offer(self, request: Request, donors: Sequence[Donor], vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """More donors for a request; nothing where it has ended."""
        draft = self._drafts.get(request.id)
        if draft is not None:
            fit = [usable(donor, vocab_size, eos_token_ids) for donor in donors]
            draft.offer([donor for donor in fit if donor is not None])

    def propose(self, request: Request, room: int, *, is_alone: bool) -> Proposal | None:
        """What is to be verified next, if anything; also asks, once, who else began as this answer does."""
        draft = self._drafts.get(request.id)  # gone with the request where that has ended
        if draft is None or request.id in self._proposals:
            return None
        proposal = draft.propose(request.output_tokens, room, is_alone=is_alone)
        if proposal is not None:
            self._proposals[request.id] = proposal
            return proposal
        if request.seek_donors is not None and len(request.output_tokens) >= OPENING_TOKENS:
            request.seek_donors(request.output_tokens[:OPENING_TOKENS])
            request.seek_donors = None
        return None

    def proposal(self, request: Request) -> Proposal:
        """What to verify now."""
        return self._proposals[request.id]

    def learn(self, request: Request, num_accepted: int, *, is_tied: bool) -> None:
        """The request's proposal was verified."""
        draft, proposal = self._drafts[request.id], self._proposals.pop(request.id)
        draft.feedback(proposal, num_accepted, is_tied=is_tied)
        if proposal.source == "donor" and num_accepted:
            request.accepted_donor = draft.donor

    def forget(self, request: Request) -> None:
        self._drafts.pop(request.id, None)
        self._proposals.pop(request.id, None)
