"""Every submitted request gets its turn, prompts never stall streams, and users share the slots."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from semcache.daemon.request import CacheOptions, Message, Request, RequestState, Sampling
from semcache.daemon.scheduler import MAX_PROMPTS, Scheduler, Step

CHUNK, ROWS = 16, 6


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
    assert scheduler.next_step() == Step(prefills=(streaming,))
    scheduler.start_decoding(streaming)
    scheduler.add(long_prompt)
    admit_all(scheduler)
    steps = [scheduler.next_step() for _ in range(4)]
    assert steps == [Step(decodes=(streaming,)), Step(prefills=(long_prompt,))] * 2


def test_two_prompts_take_turns_chunk_by_chunk() -> None:
    scheduler = Scheduler(2)
    first, second = asked("a", 9), asked("b", 1)
    scheduler.add(first)
    scheduler.add(second)
    admit_all(scheduler)
    assert scheduler.next_step() == Step(prefills=(first,))
    assert scheduler.next_step() == Step(prefills=(second,))


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
    scheduler.start_verifying(drafted, 9)
    assert drafted.state is RequestState.DECODING
    assert scheduler.num_running == 2
    assert scheduler.next_step() == Step(verifies=(drafted,))
    scheduler.start_decoding(drafted)
    assert scheduler.next_step() == Step(
        decodes=(
            streaming,
            drafted,
        )
    )
    scheduler.start_verifying(drafted, 9)
    assert scheduler.next_step() == Step(verifies=(drafted,))
    assert scheduler.next_step() == Step(decodes=(streaming,))


def test_drafts_and_prompts_take_turns() -> None:
    scheduler = Scheduler(4)
    first, second = decoding(scheduler, "a", "b")
    prompts = [asked("c", 9), asked("d", 9)]
    for prompt in prompts:
        scheduler.add(prompt)
    admit_all(scheduler)
    scheduler.start_verifying(first, 9)
    scheduler.start_verifying(second, 9)
    steps = [scheduler.next_step() for _ in range(4)]
    assert steps == [
        Step(verifies=(first,)),
        Step(prefills=(prompts[0],)),
        Step(verifies=(second,)),
        Step(prefills=(prompts[1],)),
    ]


def test_where_passes_are_joined_streams_wait_for_nobody() -> None:
    scheduler = Scheduler(4, CHUNK)
    first, second = decoding(scheduler, "a", "b")
    prompts = asked("c", 9), asked("d", 9)
    for prompt in prompts:
        scheduler.add(prompt)
    admit_all(scheduler)
    both = (first, second)
    assert scheduler.next_step() == Step(prefills=prompts[:1], decodes=both), "one chunk only: streams wait for it"
    assert scheduler.next_step() == Step(prefills=prompts[1:], decodes=both)
    scheduler.start_verifying(first, ROWS)
    assert scheduler.next_step() == Step(verifies=(first,), decodes=(second,))
    assert scheduler.next_step() == Step(prefills=prompts[:1], decodes=(second,)), "drafts and prompts take turns"


def test_prompts_share_a_step_while_nobody_streams() -> None:
    scheduler = Scheduler(MAX_PROMPTS + 2, CHUNK)
    prompts = [asked(f"u{i}", 9) for i in range(MAX_PROMPTS + 2)]
    for prompt in prompts:
        scheduler.add(prompt)
    admit_all(scheduler)
    assert scheduler.next_step() == Step(prefills=tuple(prompts[:MAX_PROMPTS]))
    assert scheduler.next_step() == Step(prefills=(*prompts[MAX_PROMPTS:], *prompts[: MAX_PROMPTS - 2]))


def test_who_waits_for_kv_has_a_stream_too() -> None:
    scheduler = Scheduler(4, CHUNK)
    [parked] = decoding(scheduler, "a")
    scheduler.park(parked)
    prompts = asked("b", 9), asked("c", 9)
    for prompt in prompts:
        scheduler.add(prompt)
    admit_all(scheduler)
    assert scheduler.next_step() == Step(prefills=prompts[:1])
    scheduler.remove(parked)
    assert scheduler.next_step() == Step(prefills=prompts[::-1])


def test_drafts_share_a_step_as_far_as_a_chunk_goes() -> None:
    scheduler = Scheduler(4, CHUNK)
    requests = decoding(scheduler, "a", "b", "c", "d")
    for request in requests[:3]:
        scheduler.start_verifying(request, ROWS)
    assert scheduler.next_step() == Step(verifies=tuple(requests[:2]), decodes=(requests[3],))
    assert scheduler.next_step() == Step(verifies=(requests[2], requests[0]), decodes=(requests[3],))
    long = Scheduler(1, CHUNK)
    [request] = decoding(long, "a")
    long.start_verifying(request, 2 * CHUNK)
    assert long.next_step() == Step(verifies=(request,)), "a draft that is longer has a step all the same"


def test_a_verifying_request_can_be_taken_out() -> None:
    scheduler = Scheduler(1)
    [request] = decoding(scheduler, "a")
    scheduler.start_verifying(request, 9)
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
    st.booleans(),
)
def test_every_request_ends_once_and_in_bounded_steps(
    jobs: list[tuple[str, int, int]], num_slots: int, cancelled: set[int], drafted: set[int], joins: bool
) -> None:
    """Drive the scheduler as the engine loop does: chunks, then tokens, some requests taken out on the way.

    A request with a number of tokens left that is in `drafted` has its next one verified instead of decoded.
    """
    scheduler = Scheduler(num_slots, CHUNK if joins else None)
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
        has_streams, num_verifying = bool(scheduler._decoding), len(scheduler._verifying)
        step = scheduler.next_step()
        if step is None:
            break
        budget -= 1
        assert budget > 0
        assert joins or not step.is_shared
        num_since_decode = num_since_decode + 1 if has_streams and not step.decodes else 0
        assert num_since_decode <= (not joins)
        assert len(step.prefills) <= (1 if has_streams or num_verifying or not joins else MAX_PROMPTS)
        assert sum(scheduler._verifying[request] for request in step.verifies) <= max(CHUNK, ROWS * (not joins))
        for request in step.prefills:
            chunks[request] -= 1
            if chunks[request] == 0:
                scheduler.start_decoding(request)
                assert request.state is RequestState.DECODING
                if tokens[request] in drafted:
                    scheduler.start_verifying(request, ROWS)
        for request in step.verifies:
            scheduler.start_decoding(request)
        for request in (*step.verifies, *step.decodes):
            tokens[request] -= 1
            if tokens[request] == 0:
                scheduler.remove(request)
                ended.append(request)
            elif tokens[request] in drafted:
                scheduler.start_verifying(request, ROWS)
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
    assert scheduler.next_step() == Step(decodes=(other,))
    scheduler.resume(parked, is_whole=True)
    assert scheduler.next_step() == Step(
        decodes=(
            other,
            parked,
        )
    )
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
    assert scheduler.next_step() == Step(prefills=(parked,))
    scheduler.start_decoding(parked)
    assert scheduler.next_step() == Step(decodes=(parked,))
