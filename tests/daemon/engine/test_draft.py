"""Which tokens are proposed, when, and that wrong ones cost little."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from semcache.daemon.engine.draft import Draft, Proposal, usable
from semcache.daemon.request import Donor

ROOM = 64


@dataclass
class Played:
    """What happened while a model that says `target` was offered drafts."""

    num_passes: int = 0  # decode steps and verifications behind the first token
    proposals: list[Proposal] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)  # of each proposal
    num_empty: int = 0  # verifications that brought no token at all

    def donors(self) -> list[Proposal]:
        return [proposal for proposal in self.proposals if proposal.source == "donor"]


def play(
    target: list[int],
    donor: list[int] | None,
    prompt: list[int] | None = None,
    ties: frozenset[int] = frozenset(),
    room: int = ROOM,
    *,
    is_alone: bool = True,
) -> Played:
    """Generate `target` as the engine loop does; at the positions in `ties` a verification stops."""
    draft = Draft(Donor(tuple(donor), has_ended=True) if donor is not None else None, prompt or [])
    played, output = Played(), target[:1]
    was_tied = False
    while len(output) < len(target):
        room_left = min(room, len(target) - len(output))
        proposal = draft.propose(output, room_left, is_alone=is_alone)
        played.num_passes += 1
        assert played.num_passes <= 2 * len(target)
        if proposal is None:
            output.append(target[len(output)])
            was_tied = False
            continue
        assert not was_tied, "the token behind a tie is decode's"
        assert 0 < len(proposal.tokens) <= room_left
        source = donor if proposal.source == "donor" else prompt
        assert source is not None
        assert list(proposal.tokens) == source[proposal.start : proposal.start + len(proposal.tokens)]
        num_accepted, num_rows = 0, min(len(proposal.tokens) + 1, room_left)
        start = len(output)
        for row in range(num_rows):
            if was_tied := start + row in ties:
                break
            output.append(target[start + row])
            if row == len(proposal.tokens) or proposal.tokens[row] != target[start + row]:
                break
            num_accepted += 1
        draft.feedback(proposal, num_accepted, is_tied=was_tied)
        played.proposals.append(proposal)
        played.accepted.append(num_accepted)
        played.num_empty += len(output) == start
    return played


def answer(num_tokens: int = 60, seed: int = 0) -> list[int]:
    """Tokens without a repetition."""
    return random.Random(seed).sample(range(1000), num_tokens)


def replaced(tokens: list[int], *places: int) -> list[int]:
    return [10_000 + i if i in places else token for i, token in enumerate(tokens)]


def test_the_same_answer_is_one_pass() -> None:
    played = play(answer(), answer())
    assert played.num_passes == 1
    assert played.accepted == [59]


def test_a_chunk_limits_a_pass() -> None:
    assert play(answer(), answer(), room=16).accepted == [16, 16, 16, 11]


def test_a_donor_that_begins_otherwise_and_never_fits_costs_nothing() -> None:
    played = play(answer(), [10_000 + i for i in range(60)])
    assert played.proposals == []
    assert played.num_passes == 59


def test_one_replaced_token_is_skipped_without_a_decode_step() -> None:
    played = play(answer(), replaced(answer(), 30))
    assert played.proposals[1].start == 31
    assert played.num_passes == 2


def test_two_replaced_tokens_leave_at_most_a_fourth_of_the_passes() -> None:
    for seed in range(300):
        places = random.Random(seed).sample(range(60), 2)
        assert play(answer(), replaced(answer(), *places)).num_passes <= 61 // 4 - 2, places  # two more prefill


def test_early_mismatches_wait_for_evidence() -> None:
    played = play(answer(), replaced(answer(), 1))
    assert played.accepted[0] == 0
    assert played.proposals[1].start == 3  # one decode step said that token 2 is the donor's
    assert played.num_passes == 5  # 16 tokens first, then twice what was accepted


def test_an_inserted_and_a_dropped_token_move_the_alignment() -> None:
    donor = answer()
    inserted = [*donor[:20], 5_000, *donor[20:]]
    dropped = [*donor[:20], *donor[21:]]
    assert play(inserted, donor).num_passes <= 6
    assert play(dropped, donor).num_passes <= 5


def test_a_moved_sentence_is_found_by_two_tokens() -> None:
    donor = answer()
    moved = [*donor[:10], *donor[40:], *donor[10:40]]
    played = play(moved, donor)
    assert {42, 12} <= {proposal.start for proposal in played.proposals}
    assert played.num_passes < 20


def test_repetitive_text_is_not_led_back_to_what_was_rejected() -> None:
    same = [7] * 60
    for places in ((20, 40), (1, 2), (5, 50), (0, 30)):
        assert play(same, replaced(same, *places)).num_passes <= 61 // 4 - 2, places
    rows = [token for i in range(12) for token in (1, 2, i, 3, 4)]  # a table
    for places in ((8, 33), (7, 9), (2, 57)):
        assert play(rows, replaced(rows, *places)).num_passes <= 61 // 4 - 2, places


def test_one_equal_token_far_away_is_no_evidence() -> None:
    target = answer()
    donor = [10_000 + i for i in range(60)]
    donor[50] = target[5]
    assert play(target, donor).proposals == []


def test_what_the_prompt_repeats_is_proposed_in_short_pieces() -> None:
    passage = answer(40, seed=5)
    target = [*answer(6, seed=1), *passage]
    played = play(target, None, prompt=[7_000, *passage, 7_001])
    assert {proposal.source for proposal in played.proposals} == {"prompt"}
    assert max(len(proposal.tokens) for proposal in played.proposals) == 8
    assert played.num_passes < len(target) / 3


def test_the_prompt_is_left_alone_in_a_batch() -> None:
    passage = answer(40)
    assert play(passage, None, prompt=passage, is_alone=False).proposals == []


def test_a_model_that_ties_everywhere_is_left_to_decode() -> None:
    played = play(answer(), answer(), ties=frozenset(range(60)))
    assert set(played.accepted) == {0}
    assert played.num_empty == len(played.proposals) <= 3


def test_behind_a_tie_the_draft_goes_on() -> None:
    played = play(answer(), answer(), ties=frozenset({2, 25}))
    assert played.accepted == [1, 22, 34]
    assert played.num_passes == 5


TOKENS = st.lists(st.integers(0, 5), min_size=1, max_size=60)  # few ids: repetitions and coincidences everywhere


@given(TOKENS, TOKENS, TOKENS, st.frozensets(st.integers(0, 60), max_size=10), st.integers(1, ROOM))
def test_whatever_the_model_says_waste_is_bounded(
    target: list[int], donor: list[int], prompt: list[int], ties: frozenset[int], room: int
) -> None:
    """Proposals are pieces of donor and prompt (checked while playing), and passes without gain are few."""
    played = play(target, donor, prompt, ties, room)
    for source, free in (("donor", 3), ("prompt", 2)):
        pairs = zip(played.proposals, played.accepted, strict=True)
        accepted = [n for proposal, n in pairs if proposal.source == source]
        assert accepted.count(0) < free + sum(accepted) / 4 + 1
    assert played.num_passes <= len(target) - 1 + played.num_empty


@given(st.data())
def test_edited_answers_never_cost_more_passes_than_none(data: st.DataObject) -> None:
    """Donors as they come: the same answer with pieces replaced, inserted, dropped and moved."""
    target = answer()
    donor = list(target)
    for _ in range(data.draw(st.integers(0, 6))):
        at, stop = sorted((data.draw(st.integers(0, len(donor))), data.draw(st.integers(0, len(donor)))))
        piece = data.draw(st.sampled_from([[], [9_999], donor[at:stop], list(reversed(donor[at:stop]))]))
        donor[at:stop] = piece
    played = play(target, donor)
    assert played.num_passes <= 59


def test_a_donor_is_cut_where_no_answer_can_follow() -> None:
    donor = Donor((5, 6, 300, 7), has_ended=True, scope="global")
    assert usable(donor, 300, (2,)) == Donor((5, 6), has_ended=False, scope="global")
    assert usable(Donor((5, -1), has_ended=True), 300, (2,)) == Donor((5,), has_ended=False)
    assert usable(Donor((5, 2, 6), has_ended=False), 300, (2,)) == Donor((5,), has_ended=True)
    assert usable(Donor((5, 6), has_ended=True), 300, (2,)) == Donor((5, 6), has_ended=True)
    assert usable(Donor((300,), has_ended=False), 300, ()) is None
    assert usable(Donor((), has_ended=True), 300, ()) is None
    assert usable(None, 300, ()) is None


def donor(*tokens: int, name: str | None = None) -> Donor:
    return Donor(tokens, has_ended=True, entry_id=name)


def test_another_donor_takes_over_where_it_begins_as_the_answer_does() -> None:
    draft = Draft(donor(1, 9, 9, 9), [])
    draft.offer([donor(1, 2, 7), donor(1, 2, 3, 4, 5, name="fits"), donor(1, 2, 3, 6)])
    assert draft.propose([1], ROOM) == Proposal((9, 9, 9), "donor", 1)
    draft.feedback(Proposal((9, 9, 9), "donor", 1), 0, is_tied=False)
    assert draft.propose([1, 2, 3], ROOM) == Proposal((4, 5), "donor", 3)
    assert draft.donor is not None
    assert draft.donor.entry_id == "fits"


def test_one_equal_token_takes_no_donor() -> None:
    draft = Draft(None, [])
    draft.offer([donor(1, 2, 3)])
    assert draft.propose([1], ROOM) is None
    assert draft.propose([1, 2], ROOM) == Proposal((3,), "donor", 2)


def test_what_differed_once_is_not_taken_later() -> None:
    draft = Draft(None, [])
    draft.offer([donor(1, 2, 3, 4)])
    assert draft.propose([1, 5], ROOM) is None
    assert draft.propose([1, 2], ROOM) is None


def test_a_donor_with_nothing_left_to_say_takes_no_place() -> None:
    draft = Draft(donor(8, 8, 8), [])
    draft.offer([donor(4, 1), donor(4, 1, 2, name="longer")])
    assert draft.propose([4], ROOM) is None
    assert draft.propose([4, 1], ROOM) == Proposal((2,), "donor", 2)
    assert draft.donor is not None
    assert draft.donor.entry_id == "longer"


def test_the_first_donor_stays_while_it_has_evidence() -> None:
    first = tuple(answer())
    draft = Draft(Donor(first, has_ended=True), [])
    draft.offer([Donor((*first[:2], 5_000, 5_001), has_ended=True)])
    proposal = draft.propose(list(first[:2]), ROOM)
    assert proposal is not None
    assert proposal.tokens == first[2:]


def test_equal_donors_are_offered_once() -> None:
    draft = Draft(donor(1, 2, 3), [])
    draft.offer([donor(1, 2, 3), donor(1, 2, 4), donor(1, 2, 4, name="again")])
    draft.offer([donor(1, 2, 4)])
    assert [waiting.tokens for waiting in draft._waiting] == [(1, 2, 4)]


@given(st.data())
def test_whoever_is_offered_when_proposals_come_from_a_donor_or_the_prompt(data: st.DataObject) -> None:
    """Offers at any time, answers of any kind: only pieces of what was offered, and few passes for nothing."""
    target, prompt = data.draw(TOKENS), data.draw(TOKENS)
    first = data.draw(st.none() | TOKENS)
    known = [tuple(prompt)] + ([tuple(first)] if first is not None else [])
    draft = Draft(donor(*first) if first is not None else None, prompt)
    output, accepted = target[:1], []
    while len(output) < len(target):
        if data.draw(st.booleans()):
            more = data.draw(st.lists(TOKENS | st.just(target), max_size=3))
            draft.offer([donor(*tokens) for tokens in more])
            known += [tuple(tokens) for tokens in more]
        room = min(ROOM, len(target) - len(output))
        proposal = draft.propose(output, room)
        if proposal is None:
            output.append(target[len(output)])
            continue
        assert 0 < len(proposal.tokens) <= room
        stop = proposal.start + len(proposal.tokens)
        sources = known if proposal.source == "donor" else [tuple(prompt)]
        assert any(tokens[proposal.start : stop] == proposal.tokens for tokens in sources)
        if proposal.source == "donor":
            assert draft.donor is not None
            assert draft.donor.tokens[proposal.start : stop] == proposal.tokens, "it is named for its own tokens"
        said = zip(proposal.tokens, target[len(output) :], strict=False)
        num_accepted = next((n for n, (drafted, own) in enumerate(said) if drafted != own), len(proposal.tokens))
        output += target[len(output) : len(output) + num_accepted + 1]
        draft.feedback(proposal, num_accepted, is_tied=False)
        accepted.append(num_accepted)
    assert output == target
    assert accepted.count(0) <= 2 + 4 * (1 + len(known)) + sum(accepted) / 4 + 1
