"""Every submitted request gets its turn, prompts never stall streams, and users share the slots."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from semcache.daemon.request import CacheOptions, Message, Request, RequestState, Sampling
from semcache.daemon.scheduler import Decode, Prefill, Scheduler, Verify


def asked(user: str = "os:1", num_chunks: int = 1) -> Request:
    return Request(
        id="r", user=user, model="m", messages=(Message("user", "hi"),), prompt_tokens=list(range(num_chunks)),
        sampling=Sampling(), options=CacheOptions(), publish=lambda event: None,
    )  # fmt: skip


def admit_all(scheduler: Scheduler) -> list[Request]:
    admitted = []
    while (request := scheduler.admit()) is not None:
        admitted.append(request)
    return admitted


def test_slots_are_given_to_users_in_turn() -> None:
    scheduler = Scheduler(4)
    for _ in range(5):
        scheduler.add(asked("os:1/greedy"))
    for user in ("os:2", "os:3"):
        scheduler.add(asked(user))
    assert Counter(r.user for r in admit_all(scheduler)) == {"os:1/greedy": 2, "os:2": 1, "os:3": 1}
    assert scheduler.num_waiting == 3
    assert scheduler.num_running == 4


def test_prefill_alternates_with_decode() -> None:
    scheduler = Scheduler(2)
    streaming, long_prompt = asked("a"), asked("b", 3)
    scheduler.add(streaming)
    admit_all(scheduler)
    assert scheduler.next_step() == Prefill(streaming)
    scheduler.start_decoding(streaming)
    scheduler.add(long_prompt)
    admit_all(scheduler)
    steps = [scheduler.next_step() for _ in range(4)]
    assert [type(step) for step in steps] == [Decode, Prefill, Decode, Prefill]


def test_two_prompts_take_turns_chunk_by_chunk() -> None:
    scheduler = Scheduler(2)
    first, second = asked("a", 9), asked("b", 1)
    scheduler.add(first)
    scheduler.add(second)
    admit_all(scheduler)
    assert scheduler.next_step() == Prefill(first)
    assert scheduler.next_step() == Prefill(second)


def decoding(scheduler: Scheduler, *users: str) -> list[Request]:
    """Requests whose prompts are through."""
    requests = [asked(user) for user in users]
    for request in requests:
        scheduler.add(request)
    for request in admit_all(scheduler):
        scheduler.start_decoding(request)
    return requests


def test_a_draft_is_a_chunk_of_its_own_between_decode_steps() -> None:
    scheduler = Scheduler(2)
    drafted, streaming = decoding(scheduler, "a", "b")
    scheduler.start_verifying(drafted)
    assert drafted.state is RequestState.DECODING
    assert scheduler.num_running == 2
    assert scheduler.next_step() == Verify(drafted)
    scheduler.start_decoding(drafted)
    assert scheduler.next_step() == Decode([streaming, drafted])
    scheduler.start_verifying(drafted)
    assert scheduler.next_step() == Verify(drafted)
    assert scheduler.next_step() == Decode([streaming])


def test_drafts_and_prompts_take_turns() -> None:
    scheduler = Scheduler(4)
    first, second = decoding(scheduler, "a", "b")
    prompts = [asked("c", 9), asked("d", 9)]
    for prompt in prompts:
        scheduler.add(prompt)
    admit_all(scheduler)
    scheduler.start_verifying(first)
    scheduler.start_verifying(second)
    steps = [scheduler.next_step() for _ in range(4)]
    assert steps == [Verify(first), Prefill(prompts[0]), Verify(second), Prefill(prompts[1])]


def test_a_verifying_request_can_be_taken_out() -> None:
    scheduler = Scheduler(1)
    [request] = decoding(scheduler, "a")
    scheduler.start_verifying(request)
    assert list(scheduler) == [request]
    scheduler.remove(request)
    assert list(scheduler) == []
    assert scheduler.next_step() is None


def test_nothing_to_do() -> None:
    assert Scheduler(1).next_step() is None
    assert Scheduler(1).admit() is None


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.integers(1, 5)), max_size=20),
    st.integers(1, 4),
    st.sets(st.integers(0, 19)),
    st.sets(st.integers(1, 5)),
)
def test_every_request_ends_once_and_in_bounded_steps(
    jobs: list[tuple[str, int, int]], num_slots: int, cancelled: set[int], drafted: set[int]
) -> None:
    """Drive the scheduler as the engine loop does: chunks, then tokens, some requests taken out on the way.

    A request with a number of tokens left that is in `drafted` has its next one verified instead of decoded.
    """
    scheduler = Scheduler(num_slots)
    chunks: dict[Request, int] = {}
    tokens: dict[Request, int] = {}
    requests = []
    for user, num_chunks, num_tokens in jobs:
        request = asked(user)
        chunks[request], tokens[request] = num_chunks, num_tokens
        requests.append(request)
        scheduler.add(request)
    for index in cancelled & set(range(len(requests))):
        scheduler.remove(requests[index])
    ended = []
    num_since_decode = 0  # chunks that running streams have been waiting for
    budget = sum(c + t for _, c, t in jobs) + 1
    while True:
        admit_all(scheduler)
        assert scheduler.num_running <= num_slots
        has_streams = bool(scheduler._decoding)
        step = scheduler.next_step()
        if step is None:
            break
        budget -= 1
        assert budget > 0
        num_since_decode = num_since_decode + 1 if has_streams and not isinstance(step, Decode) else 0
        assert num_since_decode <= 1
        if isinstance(step, Prefill):
            chunks[step.request] -= 1
            if chunks[step.request] == 0:
                scheduler.start_decoding(step.request)
                assert step.request.state is RequestState.DECODING
                if tokens[step.request] in drafted:
                    scheduler.start_verifying(step.request)
            continue
        if isinstance(step, Verify):
            scheduler.start_decoding(step.request)
        for request in [step.request] if isinstance(step, Verify) else step.requests:
            tokens[request] -= 1
            if tokens[request] == 0:
                scheduler.remove(request)
                ended.append(request)
            elif tokens[request] in drafted:
                scheduler.start_verifying(request)
    assert len(ended) == len(set(ended)) == len(requests) - len(cancelled & set(range(len(requests))))
    assert scheduler.num_waiting == scheduler.num_running == 0


def test_who_waits_for_kv_keeps_its_slot_and_stops_nobody() -> None:
    scheduler = Scheduler(2)
    parked, other, late = asked("a"), asked("b"), asked("c")
    scheduler.add(parked)
    assert not scheduler.is_idle
    admit_all(scheduler)
    scheduler.start_decoding(parked)
    scheduler.park(parked)
    assert scheduler.is_idle
    assert scheduler.next_step() is None
    assert (scheduler.num_running, list(scheduler)) == (1, [parked])
    for request in (other, late):
        scheduler.add(request)
    assert not scheduler.is_idle
    assert admit_all(scheduler) == [other]
    scheduler.start_decoding(other)
    assert scheduler.next_step() == Decode([other])
    scheduler.resume(parked, is_whole=True)
    assert scheduler.next_step() == Decode([other, parked])
    scheduler.park(other)
    scheduler.remove(parked)
    assert admit_all(scheduler) == [late]
    scheduler.remove(late)
    assert scheduler.is_idle
    scheduler.remove(other)
    assert scheduler.is_idle
    assert not list(scheduler)


def test_nobody_else_gets_the_slot_of_who_waits_for_kv() -> None:
    scheduler = Scheduler(1)
    parked, late = asked("a"), asked("b")
    scheduler.add(parked)
    admit_all(scheduler)
    scheduler.start_decoding(parked)
    scheduler.park(parked)
    scheduler.add(late)
    assert scheduler.is_idle
    assert scheduler.admit() is None
    scheduler.resume(parked, is_whole=False)
    assert parked.state is RequestState.PREFILLING
    assert not scheduler.is_idle
    assert scheduler.next_step() == Prefill(parked)
    scheduler.start_decoding(parked)
    assert scheduler.next_step() == Decode([parked])
