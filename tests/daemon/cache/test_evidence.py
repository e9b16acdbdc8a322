"""Evidence survives a restart, dies with its entry, and a damaged one is a fresh start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from semcache.daemon.cache.evidence import EvidenceBook, dump, entry_state
from semcache.daemon.cache.ledger import Budgets
from semcache.daemon.cache.marks import pair_key
from semcache.daemon.cache.policy import Candidate
from semcache.daemon.cache.verified import VerifiedPolicy
from semcache.store.evidence import EntryEvidence
from semcache.store.limits import StoreLimits
from semcache.store.store import Store
from tests.daemon.cache.worlds import SCOPE, World, live
from tests.store.refusals import out_of_reach
from tests.store.samples import entry

BUDGETS = Budgets(0.05, 0.05)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path, StoreLimits(ram_bytes=0, disk_bytes=1 << 20))
    yield store
    store.close()


def policy(store: Store | None) -> VerifiedPolicy:
    book = EvidenceBook(store.evidence if store is not None else None)
    return VerifiedPolicy(book, max_error=BUDGETS.max_error, max_hit_error=BUDGETS.max_hit_error, seed=2)


def taught(store: Store) -> VerifiedPolicy:
    learner = policy(store)
    live(learner, World(0.0), 1000)
    prompt, candidate, _ = World(0.0, seed=8).ask()
    item = learner.decide(prompt, [candidate], [SCOPE]).considered[0]
    learner.learn(prompt, item, False, source="user", served=True, regret=0.5)
    return learner


def test_a_restart_changes_no_decision(store: Store) -> None:
    put_entries(store)
    learner = taught(store)
    assert learner.flush(SCOPE)
    again = policy(store)
    before, after = learner.status(SCOPE), again.status(SCOPE)
    assert before.served > 100
    assert (after.state, after.labels, after.served) == (before.state, before.labels, before.served)
    world = World(0.0, seed=11)
    for _ in range(20):
        prompt, candidate, _ = world.ask()
        one = learner.decide(prompt, [candidate], [SCOPE], preview=True)
        other = again.decide(prompt, [candidate], [SCOPE], preview=True)
        assert (other.serve, other.reason) == (one.serve, one.reason)
        assert other.considered[0].p_correct == pytest.approx(one.considered[0].p_correct, abs=1e-6)


def put_entries(store: Store) -> None:
    for number in range(200):
        assert store.put_entry(entry(number, id=f"e_{number}", scope=SCOPE))


def test_a_pair_marked_wrong_is_never_served_after_a_restart(store: Store) -> None:
    taught(store)  # not flushed: a mark is kept at once
    prompt, candidate, _ = World(0.0, seed=8).ask()
    assert policy(store).decide(prompt, [candidate], [SCOPE]).reason == "policy:marked_wrong"


def test_evidence_dies_with_its_entry(store: Store) -> None:
    put_entries(store)
    learner = policy(store)
    candidate = Candidate("e_7", SCOPE, "stored", "answer", 0.9)
    item = learner.decide("asked", [candidate], [SCOPE]).considered[0]
    learner.learn("asked", item, True, source="draft", served=False, regret=0.25)
    learner.flush(SCOPE)
    assert policy(store).decide("asked", [candidate], [SCOPE]).considered[0].features["regret"] == 0.25
    learner.forget(SCOPE, "e_7")
    assert store.delete_entries(["e_7"]) == 1
    learner.flush(SCOPE)
    assert policy(store).decide("asked", [candidate], [SCOPE]).considered[0].features["regret_known"] == 0.0


def test_nothing_new_is_nothing_to_save(store: Store) -> None:
    learner = policy(store)
    assert learner.flush(SCOPE)
    learner.status(SCOPE)
    assert learner.flush(SCOPE)
    assert store.evidence.load_evidence(SCOPE).state is None


def state_of(store: Store) -> dict[str, Any]:
    taught(store).flush(SCOPE)
    found: dict[str, Any] = json.loads(store.evidence.load_evidence(SCOPE).state or "")
    return found


def numbers(value: Any) -> bool:
    if isinstance(value, dict):
        return all(numbers(item) for item in value.values())
    if isinstance(value, list):
        return all(numbers(item) for item in value)
    return isinstance(value, (bool, int, float))


def test_a_state_holds_numbers_and_no_text_that_was_asked(store: Store) -> None:
    state = state_of(store)
    assert numbers({name: value for name, value in state.items() if name != "features"})
    assert "come from" not in json.dumps(state)


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: "not JSON",
        lambda s: "[]",
        lambda s: "null",
        lambda s: "[" * 100_000,
        lambda s: json.dumps(s | {"version": 99}),
        lambda s: json.dumps(s | {"features": ["other"]}),
        lambda s: json.dumps({k: v for k, v in s.items() if k != "ledger"}),
        lambda s: json.dumps(s | {"weights": [1e400] * len(s["weights"])}),
        lambda s: json.dumps(s | {"weights": "heavy"}),
        lambda s: json.dumps(s | {"ledger": s["ledger"] | {"wrong": [-1.0] * 32}}),
        lambda s: json.dumps(s)[:-40],
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_state_is_a_fresh_start(store: Store, damage: Any) -> None:
    state = state_of(store)
    assert store.evidence.save_evidence(SCOPE, damage(state), [])
    fresh = policy(None).status(SCOPE)
    assert policy(store).status(SCOPE) == fresh


@pytest.mark.parametrize("row", [(0.1, float("nan"), 0.0), (float("inf"), 2.0, 0.0), (0.0, 0.0, 0.0), (0.0, -2.0, 0.0)])
def test_a_row_whose_numbers_mean_nothing_is_left_out(row: tuple[float, float, float]) -> None:
    offset, precision, regret = row
    assert entry_state(EntryEvidence("e", 1, 1, offset, precision, 1, regret)) is None


def test_a_pair_is_named_without_its_punctuation_and_in_its_direction() -> None:
    assert pair_key("What is rain?", "snow") == pair_key("what is RAIN", "Snow!")
    assert pair_key("a", "b") != pair_key("b", "a")
    assert len(pair_key("a", "b")) == 64


def test_a_cleared_scope_starts_fresh(store: Store) -> None:
    learner = taught(store)
    learner.forget_scope(SCOPE)
    assert learner.status(SCOPE).labels == 0


def test_a_state_is_small_however_long_its_scope_was_used() -> None:
    evidence = EvidenceBook(None).scope(SCOPE, BUDGETS)
    for number in range(15_000):
        evidence.ledger.request(number % 32)
        evidence.ledger.serve(number % 32, audit=True, audit_rate=0.1)
        evidence.ledger.audit(number % 32, number % 1000 > 0, 0.1)
    assert evidence.ledger.num_audits == 15_000
    assert len(dump(evidence)) < 16_000


def test_what_cannot_be_read_serves_nothing_and_is_not_written_over(store: Store) -> None:
    put_entries(store)
    learner = taught(store)
    learner.flush(SCOPE)
    kept = store.evidence.load_evidence(SCOPE)
    again = policy(store)
    with out_of_reach(store, "scope_evidence"):
        prompt, candidate, _ = World(0.0, seed=11).ask()
        verdict = again.decide(prompt, [candidate], [SCOPE])
        assert (verdict.serve, verdict.reason, verdict.candidate) == (False, "unreadable", candidate)
        assert verdict.considered[0].p_correct is None
        again.learn(prompt, verdict.considered[0], True, source="draft", served=False)
    assert again.flush(SCOPE)
    assert store.evidence.load_evidence(SCOPE) == kept
    assert again.status(SCOPE) == learner.status(SCOPE)
    marked, theirs, _ = World(0.0, seed=8).ask()
    assert again.decide(marked, [theirs], [SCOPE]).reason == "policy:marked_wrong"


def test_a_pair_is_marked_also_where_its_scope_cannot_be_read(store: Store) -> None:
    learner, candidate = policy(store), Candidate("e_7", SCOPE, "stored", "answer", 0.9)
    with out_of_reach(store, "scope_evidence"):
        item = learner.decide("asked", [candidate], [SCOPE]).considered[0]
        learner.learn("asked", item, False, source="user", served=True)
    for one in (learner, policy(store)):
        assert one.decide("asked", [candidate], [SCOPE]).reason == "policy:marked_wrong"


def test_a_cleared_scope_takes_its_namespaces_along() -> None:
    learner, scopes = policy(None), (SCOPE, f"{SCOPE}#run", f"{SCOPE}b")
    learner.decide("asked", [], scopes)
    learner.forget_scope(SCOPE)
    assert [learner.status(scope).requests for scope in scopes] == [0, 0, 1]
