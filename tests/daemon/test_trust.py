"""Explanations, marks and audits are told to those whose requests they are about, and to nobody else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from semcache.config import Config
from semcache.daemon.journal import Journal
from semcache.daemon.library import Library
from semcache.daemon.request import Outcome, Request, RequestState
from semcache.daemon.trust import Trust
from semcache.errors import NotFoundError, StoreError, UsageError
from semcache.store.store import Store
from tests.daemon.cache.school import School
from tests.daemon.cache.words import WordEmbedder, asked
from tests.store.refusals import out_of_reach, unwritable
from tests.store.test_entries import edit

ANN, OTHER = "os:1/ann", "os:2"


class Desk:
    """Somebody who may ask why, over a small cache."""

    def __init__(self, store: Store, *, learns: bool = False) -> None:
        self.school, self.store = School(store, learns=learns), store
        self.journal = Journal(store)
        config = Config()
        lessons = self.school.lessons
        library = Library(
            config=config, store=store, forget_scope=lessons.forget_scope, forget_entry=lessons.forget_entry,
            save_scope=lessons.save,
        )  # fmt: skip
        self.trust = Trust(
            config=config, store=store, policy=self.school.policy, lessons=lessons, library=library,
            journal=self.journal,
        )  # fmt: skip

    def replayed(self, prompt: str, **changed: Any) -> Request:
        """A request that was answered from the cache, as the service leaves it."""
        request, match = self.school.ask(prompt, **changed)
        assert match.answer is not None
        request.match(match.receipt)
        request.considered = match.verdict.considered if match.verdict is not None else ()
        request.end(RequestState.FINISHED)
        self.journal.opened(request)
        self.school.lessons.served(request, match)
        return request


def test_a_mark_reaches_the_hit_of_ones_own_request_only(store: Store) -> None:
    desk = Desk(store)
    entry = desk.school.cache.answer(asked("what is rain"), "water")
    hit = desk.replayed("so what is rain")
    for verdict in ("wrong", "right"):
        for caller in (OTHER, "os:11", ""):
            with pytest.raises(NotFoundError):
                desk.trust.feedback(caller, hit.id, verdict)
    assert desk.school.decisions(hit)[0].label is None
    result = desk.trust.feedback("os:1", hit.id, "wrong")
    assert result == {
        "request": hit.id, "entry": entry.id, "verdict": "wrong", "removed": False, "negative_pair": True,
    }  # fmt: skip
    assert desk.school.outcome("so what is rain")[1] == "policy:marked_wrong"
    assert store.decisions.wrong_hits(users=[ANN]) == (1, 1)


def test_a_hit_said_to_be_right_is_a_label(store: Store) -> None:
    desk = Desk(store)
    desk.school.cache.answer(asked("what is rain"), "water")
    hit = desk.replayed("so what is rain")
    assert not desk.trust.feedback("os:1", hit.id, "right")["negative_pair"]
    assert store.decisions.wrong_hits() == (1, 0)
    assert store.decisions.num_due() == 0, "nothing is left to find out"


def test_the_hit_of_an_entry_that_is_gone_cannot_be_marked(store: Store) -> None:
    desk = Desk(store)
    entry = desk.school.cache.answer(asked("what is rain"), "water")
    hit = desk.replayed("so what is rain")
    store.delete_entries([entry.id])
    with pytest.raises(NotFoundError, match="gone"):
        desk.trust.feedback("os:1", hit.id, "wrong")


def test_a_verified_wording_can_be_marked_wrong(store: Store) -> None:
    desk = Desk(store)
    entry = desk.school.cache.answer(asked("what is rain"), "water")
    decision, _ = desk.school.hit("so what is rain")
    desk.school.audit(decision, entry, "water")
    hit = desk.replayed("so what is rain")
    assert hit.receipt is not None
    assert hit.receipt.reason == "alias"
    with pytest.raises(NotFoundError):
        desk.trust.feedback(OTHER, hit.id, "wrong")
    assert desk.trust.feedback("os:1", hit.id, "wrong")["negative_pair"]
    assert store.aliases.of(entry.id) == []
    assert desk.school.outcome("so what is rain")[1] == "policy:marked_wrong"


@pytest.mark.parametrize("is_verified", [False, True])
def test_a_mark_that_cannot_be_kept_is_an_error_and_can_be_said_again(store: Store, is_verified: bool) -> None:
    desk = Desk(store)
    desk.school.cache.answer(asked("what is rain"), "water")
    if is_verified:
        desk.school.audit(*desk.school.hit("so what is rain"), "water")
    hit = desk.replayed("so what is rain")
    with unwritable(store), pytest.raises(StoreError, match="try again"):
        desk.trust.feedback("os:1", hit.id, "wrong")
    assert desk.trust.feedback("os:1", hit.id, "wrong")["negative_pair"]
    assert Desk(store).school.outcome("so what is rain")[1] == "policy:marked_wrong"


def test_a_verified_wording_marked_wrong_is_not_served_though_its_key_could_not_be_deleted(store: Store) -> None:
    desk = Desk(store)
    entry = desk.school.cache.answer(asked("what is rain"), "water")
    desk.school.audit(*desk.school.hit("so what is rain"), "water")
    hit = desk.replayed("so what is rain")
    with out_of_reach(store, "aliases"):
        assert desk.trust.feedback("os:1", hit.id, "wrong")["negative_pair"]
    assert len(store.aliases.of(entry.id)) == 1
    for one in (desk, Desk(store)):
        assert one.school.outcome("so what is rain")[1] == "policy:marked_wrong"


def test_the_verified_wording_of_an_entry_that_is_gone_cannot_be_marked(store: Store) -> None:
    desk = Desk(store)
    entry = desk.school.cache.answer(asked("what is rain"), "water")
    desk.school.audit(*desk.school.hit("so what is rain"), "water")
    hit = desk.replayed("so what is rain")
    store.delete_entries([entry.id])
    with pytest.raises(NotFoundError, match="gone"):
        desk.trust.feedback("os:1", hit.id, "wrong")


def test_an_identical_hit_marked_wrong_removes_the_answer(store: Store) -> None:
    desk = Desk(store)
    entry = desk.school.cache.answer(asked("what is rain"), "water")
    hit = desk.replayed("what is rain")
    with pytest.raises(NotFoundError):
        desk.trust.feedback(OTHER, hit.id, "wrong")
    assert desk.trust.feedback("os:1", hit.id, "right")["removed"] is False
    assert desk.trust.feedback("os:1", hit.id, "wrong")["removed"] is True
    assert store.get_entry(entry.id) is None


NO_STORE = {"options": {"no_store": True}}


@pytest.mark.parametrize("is_verified", [False, True])
@pytest.mark.parametrize("verdict", ["wrong", "right"])
def test_another_wording_that_is_not_to_be_stored_cannot_be_marked(
    store: Store, is_verified: bool, verdict: str
) -> None:
    desk = Desk(store)
    entry = desk.school.cache.answer(asked("what is rain"), "water")
    if is_verified:
        desk.school.audit(*desk.school.hit("so what is rain"), "water")
    hit = desk.replayed("so what is rain", **NO_STORE)
    with pytest.raises(UsageError, match=f"no-store.*cache rm {entry.id}"):
        desk.trust.feedback("os:1", hit.id, verdict)
    assert store.get_entry(entry.id) is not None
    assert len(store.aliases.of(entry.id)) == is_verified
    assert store.evidence.load_evidence(entry.scope).negatives == frozenset()
    with pytest.raises(NotFoundError):  # after a restart nothing is known of it
        Desk(store).trust.feedback("os:1", hit.id, verdict)


def test_a_stored_answer_can_be_marked_wrong_by_a_request_that_is_not_stored(store: Store) -> None:
    desk = Desk(store)
    entry = desk.school.cache.answer(asked("what is rain"), "water")
    hit = desk.replayed("what is rain", **NO_STORE)
    assert desk.trust.feedback("os:1", hit.id, "wrong")["removed"] is True
    assert store.get_entry(entry.id) is None


def test_a_computed_request_has_no_hit_to_mark(store: Store) -> None:
    desk = Desk(store)
    request, match = desk.school.ask("what is rain")
    request.match(match.receipt)
    desk.journal.opened(request)
    with pytest.raises(UsageError, match="was computed"):
        desk.trust.feedback("os:1", request.id, "wrong")
    with pytest.raises(NotFoundError):
        desk.trust.feedback(OTHER, request.id, "wrong")


def test_an_entry_can_be_marked_by_its_owner_only(store: Store) -> None:
    desk = Desk(store)
    entry = desk.school.cache.answer(asked("what is rain"), "water")
    for verdict in ("wrong", "right"):
        with pytest.raises(NotFoundError):
            desk.trust.feedback(OTHER, entry.id, verdict)
        with pytest.raises(NotFoundError):
            desk.trust.feedback("os:1", "nothing of the kind", verdict)
    assert not desk.trust.feedback("os:1", entry.id, "right")["removed"]
    assert store.get_entry(entry.id) is not None
    assert desk.trust.feedback("os:1", entry.id, "wrong")["removed"]
    assert store.get_entry(entry.id) is None


def test_an_explanation_is_for_whom_it_concerns_also_after_a_restart(store: Store) -> None:
    desk = Desk(store)
    entry = desk.school.cache.answer(asked("what is rain"), "water")
    hit = desk.replayed("so what is rain")
    told = desk.trust.explained("os:1", hit.id)
    assert (told["outcome"], told["reason"]) == ("semantic", "similar")
    for forgetful in (desk, Desk(store)):
        with pytest.raises(NotFoundError):
            forgetful.trust.explained(OTHER, hit.id)
        (row,) = forgetful.trust.explained("os:1", hit.id)["candidates"]
        assert (row["entry"], row["prompt"], row["answer"]) == (entry.id, "what is rain", "water")
        assert row["verdict"] == "served"
    with pytest.raises(NotFoundError):
        desk.trust.explained("os:1", "req_0")


@pytest.mark.parametrize("learns", [False, True])
def test_explaining_beforehand_changes_no_counter(store: Store, learns: bool) -> None:
    desk = Desk(store, learns=learns)
    entry = desk.school.cache.answer(asked("what is rain"), "water")
    before = store.counters(), store.decisions.num_due(), store.usage()
    request = asked("so what is rain")
    match = desk.school.cache.find(request, preview=True)
    told = desk.trust.explanation(request, match)
    assert [row["entry"] for row in told["candidates"]] == [entry.id]
    assert told["outcome"] == ("draft" if learns else "semantic")
    assert told["donor"] == (entry.id if learns else None)
    assert (store.counters(), store.decisions.num_due(), store.usage()) == before
    kept = store.get_entry(entry.id)
    assert kept is not None
    assert kept.hits == 0
    assert store.decisions.recent() == []
    if desk.school.policy is not None:
        assert desk.school.policy.status(entry.scope).requests == 0


def test_audits_and_budgets_are_told_of_ones_own_scopes(store: Store) -> None:
    desk = Desk(store)
    entry = desk.school.cache.answer(asked("what is rain"), "water")
    decision, _ = desk.school.hit("so what is rain")
    desk.school.audit(decision, entry, "water")
    report = desk.trust.audits("os:1")
    assert [(row["user"], row["same"], row["source"]) for row in report["recent"]] == [(ANN, True, "audit")]
    assert [(row["user"], row["audits"], row["wrong"]) for row in report["scopes"]] == [(ANN, 1, 0)]
    strangers = desk.trust.audits(OTHER)
    assert (strangers["recent"], strangers["scopes"]) == ([], [])
    assert [row["requests"] for row in desk.trust.tune(OTHER, [0.1], [0.1])["rows"]] == [0]


@pytest.mark.parametrize(
    "change",
    [
        *(f"{column} = {value}" for column in ("at", "score", "p_correct") for value in ("'x'", "x'ff'", "9e999")),
        "at = 1e300", "at = -1e300", "scope = x'ff'", "user = x'ff'", "prompt = x'ff'", "reason = x'ff'",
    ],
)  # fmt: skip
def test_one_damaged_decision_hides_no_other(store: Store, tmp_path: Path, change: str) -> None:
    desk = Desk(store)
    entry = desk.school.cache.answer(asked("what is rain"), "water")
    kept, lost = (desk.school.hit(words)[0] for words in ("so what is rain", "now what is rain"))
    for decision in (kept, lost):
        desk.school.audit(decision, entry, "water")
    edit(tmp_path / "data", f"UPDATE decisions SET {change} WHERE request_id = '{lost.request_id}'")
    report, tuned = desk.trust.audits("os:1"), desk.trust.tune("os:1", [0.1], [0.1])
    assert [row["request"] for row in report["recent"]] == [kept.request_id]
    json.dumps([report, tuned, desk.trust.explained("os:1", kept.request_id)], allow_nan=False)
    for act in (desk.trust.explained, lambda caller, asked_id: desk.trust.feedback(caller, asked_id, "right")):
        with pytest.raises(NotFoundError):
            act("os:1", lost.request_id)


def test_what_is_near_is_found_in_readable_scopes(store: Store) -> None:
    desk = Desk(store)
    entry = desk.school.cache.answer(asked("what is rain"), "water")
    embedder: Any = WordEmbedder()
    assert [row["id"] for row in desk.trust.near(ANN, "rain", 5, embedder)] == [entry.id]
    assert desk.trust.near("os:1/bob", "rain", 5, embedder) == desk.trust.near(OTHER, "rain", 5, embedder) == []
    with pytest.raises(UsageError, match="semantic search is off"):
        desk.trust.near(ANN, "rain", 5, None)


def test_a_request_under_way_is_explained_without_guessing(store: Store) -> None:
    """Its look-up is not done: what is known of it is that it was asked."""
    desk = Desk(store)
    request = asked("what is rain")
    request.id = "req_under_way"
    desk.journal.opened(request)
    with pytest.raises(NotFoundError):
        desk.trust.explained("os:1", request.id)
    request.match(replace(desk.school.cache.find(request).receipt, outcome=Outcome.MISS))
    assert desk.trust.explained("os:1", request.id)["candidates"] == []
