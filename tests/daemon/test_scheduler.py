"""Every submitted request gets its turn, prompts never stall streams, and users share the slots."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from semcache.daemon.request import CacheOptions, Message, Request, RequestState, Sampling
from semcache.daemon.scheduler import Decode, Prefill, Scheduler


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


def test_nothing_to_do() -> None:
    assert Scheduler(1).next_step() is None
    assert Scheduler(1).admit() is None


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.integers(1, 5)), max_size=20),
    st.integers(1, 4),
    st.sets(st.integers(0, 19)),
)
def test_every_request_ends_once_and_in_bounded_steps(
    jobs: list[tuple[str, int, int]], num_slots: int, cancelled: set[int]
) -> None:
    """Drive the scheduler as the engine loop does: chunks, then tokens, some requests taken out on the way."""
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
    budget = sum(c + t for _, c, t in jobs) + 1
    while True:
        admit_all(scheduler)
        assert scheduler.num_running <= num_slots
        step = scheduler.next_step()
        if step is None:
            break
        budget -= 1
        assert budget > 0
        if isinstance(step, Prefill):
            chunks[step.request] -= 1
            if chunks[step.request] == 0:
                scheduler.start_decoding(step.request)
                assert step.request.state is RequestState.DECODING
        else:
            for request in step.requests:
                tokens[request] -= 1
                if tokens[request] == 0:
                    scheduler.remove(request)
                    ended.append(request)
    assert len(ended) == len(set(ended)) == len(requests) - len(cancelled & set(range(len(requests))))
    assert scheduler.num_waiting == scheduler.num_running == 0
