"""What was learned survives a restart, dies with its entry and its scope, and starts afresh where it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from semcache.store import evidence as evidence_module
from semcache.store.evidence import StoredEvidence
from semcache.store.store import Store

from .conftest import OpenStore
from .refusals import out_of_reach
from .samples import ALICE, BOB, decision, entry, evidence
from .test_entries import edit

NOTHING = StoredEvidence(None, (), frozenset())


def test_evidence_comes_back_as_it_went_in(store: Store, open_store: OpenStore) -> None:
    store.put_entry(entry(1))
    store.put_entry(entry(2))
    state = '{"weights": [1e-300, -0.1], "ü": "–"}'
    assert store.evidence.save_evidence(ALICE.scope, state, [evidence(1, offset=-0.1), evidence(2)])
    assert store.evidence.add_negative(ALICE.scope, "pair")
    found = open_store().evidence.load_evidence(ALICE.scope)
    assert (found.state, found.negatives) == (state, {"pair"})
    assert set(found.entries) == {evidence(1, offset=-0.1), evidence(2)}
    again = open_store().evidence
    assert (again.of_entry(entry(2).id), again.of_entry(entry(3).id)) == (evidence(2), None)


def test_scopes_share_nothing(store: Store) -> None:
    store.put_entry(entry(1))
    store.put_entry(entry(2, scope=BOB.scope))
    assert store.evidence.save_evidence(ALICE.scope, "a", [evidence(1), evidence(2)])
    assert store.evidence.add_negative(ALICE.scope, "pair")
    assert store.evidence.load_evidence(BOB.scope) == NOTHING
    assert store.evidence.load_evidence(f"{ALICE.scope}#run") == NOTHING
    assert store.evidence.load_evidence(ALICE.scope).entries == (evidence(1),)


def test_a_save_adds_and_replaces_but_forgets_no_other_entry(store: Store) -> None:
    for number in (1, 2):
        store.put_entry(entry(number))
    store.evidence.save_evidence(ALICE.scope, "old", [evidence(1), evidence(2)])
    store.evidence.save_evidence(ALICE.scope, "new", [evidence(2, num_same=7), evidence(9)])
    found = store.evidence.load_evidence(ALICE.scope)
    assert found.state == "new"
    assert set(found.entries) == {evidence(1), evidence(2, num_same=7)}


def test_evidence_dies_with_its_entry(store: Store) -> None:
    for number in (1, 2):
        store.put_entry(entry(number))
    store.evidence.save_evidence(ALICE.scope, "s", [evidence(1), evidence(2)])
    store.delete_entries([entry(1).id])
    assert store.evidence.load_evidence(ALICE.scope) == StoredEvidence("s", (evidence(2),), frozenset())
    store.put_entry(entry(3, request_key="req2"))  # a newer answer takes the place of entry 2
    assert store.evidence.load_evidence(ALICE.scope).entries == ()


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("scope_evidence", "state = '{}'"), ("scope_evidence", "state = x'00'"), ("scope_evidence", "checksum = ''"),
        ("scope_evidence", "state = CAST(x'ff' AS TEXT)"),
        *(("entry_evidence", f"{column} = 9") for column in (
            "num_same", "num_other", '"offset"', "precision", "num_regrets", "mean_regret")),
        ("entry_evidence", "num_same = 'many'"), ("entry_evidence", "checksum = x''"),
    ],
)  # fmt: skip
def test_a_changed_row_is_a_fresh_start_of_what_it_said(store: Store, data_dir: Path, table: str, change: str) -> None:
    for number in (1, 2):
        store.put_entry(entry(number))
    store.evidence.save_evidence(ALICE.scope, "s", [evidence(1), evidence(2)])
    store.evidence.add_negative(ALICE.scope, "pair")
    edit(data_dir, f"UPDATE {table} SET {change} WHERE rowid = 1")
    if table == "entry_evidence":
        assert store.evidence.of_entry(entry(1).id) is None
    found = store.evidence.load_evidence(ALICE.scope)
    assert (found.state, found.negatives) == (None if table == "scope_evidence" else "s", {"pair"})
    assert set(found.entries) == ({evidence(1), evidence(2)} if table == "scope_evidence" else {evidence(2)})
    assert store.counters()["damaged_evidence"] == 1
    assert store.evidence.load_evidence(ALICE.scope) == found
    assert store.counters()["damaged_evidence"] == 1
    assert store.evidence.save_evidence(ALICE.scope, "again", [evidence(1)])
    assert store.evidence.load_evidence(ALICE.scope).state == "again"


def test_a_state_moved_to_another_scope_says_nothing(store: Store, data_dir: Path) -> None:
    store.evidence.save_evidence(ALICE.scope, "s", [])
    edit(data_dir, "UPDATE scope_evidence SET scope = ?", BOB.scope)
    assert store.evidence.load_evidence(BOB.scope) == NOTHING


def test_the_newest_negative_pairs_of_each_scope_stay(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_module, "MAX_NEGATIVES_PER_SCOPE", 3)
    store.evidence.add_negative(BOB.scope, "theirs")
    for number in (0, 1, 2, 0, 3):  # the first is said again and is not old any more
        assert store.evidence.add_negative(ALICE.scope, f"pair{number}")
    assert store.evidence.load_evidence(ALICE.scope).negatives == {"pair2", "pair0", "pair3"}
    assert store.evidence.load_evidence(BOB.scope).negatives == {"theirs"}


@pytest.mark.parametrize("table", ["negatives", "negative_copies"])
@pytest.mark.parametrize(
    "change", ["pair_key = 'paiq'", "pair_key = x'00'", "pair_key = CAST(x'ff' AS TEXT)", "scope = 'user:os:1/alicf'"]
)
def test_a_negative_pair_survives_damage_to_one_row(store: Store, data_dir: Path, table: str, change: str) -> None:
    """A mark that is lost is a wrong answer that is served again."""
    for pair in ("pair", "another"):
        assert store.evidence.add_negative(ALICE.scope, pair)
    edit(data_dir, f"UPDATE {table} SET {change} WHERE pair_key = 'pair'")
    assert store.evidence.load_negatives(ALICE.scope) >= {"pair", "another"}
    assert store.counters()["damaged_evidence"] > 0
    edit(data_dir, f"DELETE FROM {'negatives' if table == 'negative_copies' else 'negative_copies'}")
    assert store.evidence.load_evidence(ALICE.scope).negatives >= {"pair", "another"}, "both rows were written again"
    seen = store.counters()
    store.evidence.load_negatives(ALICE.scope)
    assert store.counters() == seen


def test_what_cannot_be_written_changes_nothing(store: Store) -> None:
    store.put_entry(entry(1))
    store.evidence.save_evidence(ALICE.scope, "s", [evidence(1)])
    assert not store.evidence.save_evidence(ALICE.scope, "\ud800", [])
    assert not store.evidence.save_evidence(
        ALICE.scope, "t", [evidence(1, num_same=5), evidence(1, offset=float("nan"))]
    )
    assert store.counters()["write_failures"] == 2
    assert store.evidence.load_evidence(ALICE.scope) == StoredEvidence("s", (evidence(1),), frozenset())


def learn(store: Store, scope: str) -> None:
    assert store.evidence.save_evidence(scope, "{}", [])
    assert store.evidence.add_negative(scope, "pair")


def learned(store: Store, *scopes: str) -> list[str]:
    """The scopes of these that still have a state; negative pairs must agree."""
    found = {scope: store.evidence.load_evidence(scope) for scope in scopes}
    assert all((one.state is None) == (not one.negatives) for one in found.values())
    return [scope for scope, one in found.items() if one.state is not None]


def test_what_a_scope_learned_goes_with_the_whole_scope(store: Store) -> None:
    own, cousin, shared = ALICE.scope, f"{ALICE.scope}2", "global:os:1"
    scopes = (own, f"{own}#run", cousin, BOB.scope, shared, f"{shared}#run")
    for scope in scopes:
        learn(store, scope)
    for number, user in enumerate((ALICE.user, BOB.user)):
        store.put_entry(entry(number, scope=shared, user=user))
        store.put_entry(entry(10 + number, scope=f"{shared}#run", user=user))
        store.put_entry(entry(20 + number, user=user, scope=f"user:{user}#run"))
        store.decisions.record([decision(number, scope=shared, user=user), decision(10 + number, scope=own, user=user)])
    store.clear(namespace="run", user=ALICE.user)
    assert learned(store, *scopes) == [own, cousin, BOB.scope, shared, f"{shared}#run"]
    store.clear(namespace="run", user=BOB.user)
    assert learned(store, *scopes) == [own, cousin, BOB.scope, shared]
    store.clear(user=ALICE.user)
    assert learned(store, *scopes) == [cousin, BOB.scope, shared]
    assert {row.user for row in store.decisions.recent()} == {BOB.user}
    store.clear(user=BOB.user)
    assert learned(store, *scopes) == [cousin]
    learn(store, BOB.scope)
    store.clear(scopes=[BOB.scope])
    assert learned(store, *scopes) == [cousin]
    store.clear()
    assert learned(store, *scopes) == []


def test_what_cannot_be_read_is_not_taken_for_nothing(store: Store) -> None:
    learn(store, ALICE.scope)
    for table in ("scope_evidence", "entry_evidence", "negatives"):
        with out_of_reach(store, table):
            assert store.evidence.load_evidence(ALICE.scope) is None
    with out_of_reach(store, "negatives"):
        assert store.evidence.load_negatives(ALICE.scope) is None
    assert store.counters()["read_failures"] == 4
    assert store.evidence.load_negatives(ALICE.scope) == {"pair"}
    assert learned(store, ALICE.scope) == [ALICE.scope]
