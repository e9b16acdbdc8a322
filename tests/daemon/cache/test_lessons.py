"""What a request may teach: labels only from whole, repeatable answers, and the user's word above every other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from semcache.daemon.cache.lessons import MAX_RECORDED, OpenQuestion, considered_of
from semcache.daemon.request import RequestState, Sampling
from semcache.errors import StoreError
from semcache.store.store import Store
from tests.daemon.cache.school import School
from tests.daemon.cache.words import asked, told
from tests.store.refusals import out_of_reach, unwritable


def test_a_hit_is_recorded_with_its_audit(store: Store) -> None:
    school = School(store)
    entry = school.cache.answer(asked("what is rain"))
    decision, found = school.hit("so what is rain")
    assert found.id == entry.id
    assert (decision.served, decision.audit, decision.label, decision.reason) == (True, True, None, "similar")
    assert (decision.scope, decision.prompt, decision.matched_prompt) == (
        entry.scope,
        "so what is rain",
        "what is rain",
    )
    assert [d.request_id for d in store.decisions.due_audits(9)] == [decision.request_id]


def test_an_audited_wording_becomes_an_exact_key_of_its_user(store: Store) -> None:
    school = School(store)
    school.cache.answer(asked("what is rain"), "water")
    decision, entry = school.hit("so what is rain")
    assert school.audit(decision, entry, "water.") == (True, True)
    assert school.outcome("so what is rain") == ("exact", "alias")
    assert school.outcome("so what is rain", user="os:1/bob") == ("miss", "empty")
    assert store.decisions.num_due() == 0
    assert store.decisions.wrong_hits() == (1, 0)


@pytest.mark.parametrize(
    ("text", "finish_reason", "same"),
    [("about 7 drops", "stop", False), ("something quite different about weather and water", "stop", None),
     ("water", "length", None)],
)  # fmt: skip
def test_only_the_same_answer_makes_an_alias(store: Store, text: str, finish_reason: str, same: bool | None) -> None:
    school = School(store)
    school.cache.answer(asked("what is rain"), "water falls down in many drops of all sizes")
    decision, entry = school.hit("so what is rain")
    assert school.audit(decision, entry, text, finish_reason) == (True, same)
    assert store.aliases.of(entry.id) == []
    assert school.now(decision).label is same
    assert school.now(decision).audited_at is not None
    assert store.decisions.num_due() == 0
    assert store.decisions.wrong_hits() == ((1, 1) if same is False else (0, 0))


def test_an_entry_that_vanished_between_decision_and_audit_leaves_no_alias(store: Store) -> None:
    school = School(store)
    school.cache.answer(asked("what is rain"), "water")
    decision, entry = school.hit("so what is rain")
    store.delete_entries([entry.id])
    school.audit(decision, entry, "water")
    assert store._db.number("SELECT count(*) FROM aliases") == 0
    assert school.outcome("so what is rain")[0] not in ("exact", "semantic")


def test_what_was_cleared_meanwhile_cannot_be_recorded(store: Store) -> None:
    school = School(store)
    school.cache.answer(asked("what is rain"), "water")
    decision, entry = school.hit("so what is rain")
    store.clear(user="os:1/ann")
    assert school.audit(decision, entry, "water") == (False, None)
    assert store.aliases.of(entry.id) == []


def test_the_users_word_overrides_an_audit_and_ends_its_alias(store: Store) -> None:
    school = School(store)
    school.cache.answer(asked("what is rain"), "water")
    decision, entry = school.hit("so what is rain")
    school.audit(decision, entry, "water")
    assert school.lessons.marked(school.now(decision), entry, False)
    assert (school.now(decision).label, school.now(decision).source) == (False, "user")
    assert school.outcome("so what is rain")[1] == "policy:marked_wrong"
    assert school.outcome("what is rain") == ("exact", "identical")


def test_an_audit_cannot_override_the_users_word(store: Store) -> None:
    """Neither of the very request nor of another one of the same wording, whose audit was due already."""
    school = School(store)
    school.cache.answer(asked("what is rain"), "water")
    decision, entry = school.hit("so what is rain")
    other, _ = school.hit("so what is rain")
    school.lessons.marked(decision, entry, False)
    assert school.audit(decision, entry, "water") == (True, None)
    assert (school.now(decision).label, school.now(decision).source) == (False, "user")
    assert school.audit(other, entry, "water") == (True, True)
    assert store.aliases.of(entry.id) == []
    assert school.outcome("so what is rain")[1] == "policy:marked_wrong"


def test_a_mark_is_kept_across_a_restart_whatever_the_policy(store: Store) -> None:
    school = School(store)
    school.cache.answer(asked("what is rain"), "water")
    decision, entry = school.hit("so what is rain")
    school.lessons.marked(decision, entry, False)
    for learns in (False, True):
        assert School(store, learns=learns).outcome("so what is rain")[1] == "policy:marked_wrong"


def test_a_verified_wording_marked_wrong_is_no_key_any_more(store: Store) -> None:
    school = School(store)
    school.cache.answer(asked("what is rain"), "water")
    decision, entry = school.hit("so what is rain")
    school.audit(decision, entry, "water")
    request, match = school.ask("so what is rain")
    assert told(match) == ("exact", "alias")
    assert school.lessons.unaliased(request, entry.id)
    assert store.aliases.of(entry.id) == []
    assert school.outcome("so what is rain")[1] == "policy:marked_wrong"
    assert not school.lessons.unaliased(request, "e_gone")


def test_a_verified_wording_is_no_key_while_marks_cannot_be_read(store: Store) -> None:
    school = School(store)
    school.cache.answer(asked("what is rain"), "water")
    school.audit(*school.hit("so what is rain"), "water")
    again = School(store)
    with out_of_reach(store, "negatives"):
        assert again.outcome("so what is rain")[1] == "unreadable"
    assert again.outcome("so what is rain") == ("exact", "alias")


def test_no_alias_is_made_while_marks_cannot_be_read(store: Store) -> None:
    school = School(store)
    school.cache.answer(asked("what is rain"), "water")
    decision, entry = school.hit("so what is rain")
    with out_of_reach(store, "negatives"):
        assert School(store).audit(decision, entry, "water") == (True, True)
    assert store.aliases.of(entry.id) == []


def test_a_word_that_was_not_kept_teaches_when_it_is_said_again(store: Store) -> None:
    school = School(store, learns=True)
    entry = school.cache.answer(asked("what is rain"), "water")
    school.compute("so what is rain", "water")
    (decision,) = store.decisions.recent()
    with out_of_reach(store, "negatives"), pytest.raises(StoreError, match="wrong for this wording"):
        school.lessons.marked(decision, entry, False)
    assert school.policy is not None
    learned = school.policy._book.scope(entry.scope, school.policy.budgets).entries[entry.id]
    assert learned.num_other == 0
    school.lessons.marked(school.now(decision), entry, False)
    assert learned.num_other == 1
    with unwritable(store), pytest.raises(StoreError, match="was right"):
        school.lessons.marked(school.now(decision), entry, True)


def test_saying_it_twice_teaches_once(store: Store) -> None:
    school = School(store, learns=True)
    entry = school.cache.answer(asked("what is rain"), "water")
    school.compute("so what is rain", "water")
    (decision,) = store.decisions.recent()
    for _ in range(3):
        school.lessons.marked(school.now(decision), entry, False)
    assert school.policy is not None
    assert school.policy._book.scope(entry.scope, school.policy.budgets).entries[entry.id].num_other == 1


@pytest.mark.parametrize(("text", "same"), [("water", True), ("fire", False), ("it is made of water", None)])
def test_a_computed_answer_labels_the_candidates(store: Store, text: str, same: bool | None) -> None:
    school = School(store, learns=True)
    school.cache.answer(asked("what is rain"), "water")
    (decision,) = school.compute("so what is rain", text)
    assert (decision.served, decision.label) == (False, same)
    assert decision.source == (None if same is None else "equivalence")
    assert school.labels() == (same is not None)
    assert store.decisions.wrong_hits() == (0, 0), "no hit, so none that could be wrong"


def test_few_are_recorded_and_the_chosen_one_first(store: Store) -> None:
    school = School(store, learns=True)
    for word in "rain snow hail wind fog".split():
        school.cache.answer(asked(f"what is the {word} like"), word)
    recorded = school.compute("so what is the rain like", "rain")
    assert len(recorded) == MAX_RECORDED
    assert recorded[0].matched_prompt == "what is the rain like"
    assert school.labels() == 1, "the others would not have been served"


@pytest.mark.parametrize("state", [RequestState.CANCELLED, RequestState.FAILED])
def test_what_did_not_finish_teaches_nothing(store: Store, state: RequestState) -> None:
    school = School(store, learns=True)
    school.cache.answer(asked("what is rain"), "water")
    request, match = school.ask("so what is rain")
    request.state, request.answer, request.finish_reason = state, "water", "stop"
    school.lessons.computed(request, match)
    assert school.decisions(request) == []
    assert school.labels() == 0


def test_a_cut_answer_teaches_nothing(store: Store) -> None:
    school = School(store, learns=True)
    school.cache.answer(asked("what is rain"), "water")
    assert school.compute("so what is rain", "wat", finish_reason="length") == []
    assert school.labels() == 0


@pytest.mark.parametrize("reuse_sampled", [False, True])
def test_chance_teaches_nothing(store: Store, reuse_sampled: bool) -> None:
    school = School(store, learns=True, lookup={"reuse_sampled": reuse_sampled})
    loose = Sampling(temperature=1.0, max_tokens=8)
    school.cache.answer(asked("what is rain", sampling=loose), "water")
    assert school.compute("so what is rain", "fire", sampling=loose) == []
    assert school.labels() == 0


@pytest.mark.parametrize("text", ["water", "fire", "it is made of water"])
def test_a_request_that_wants_nothing_stored_teaches_nothing(store: Store, text: str) -> None:
    school = School(store, learns=True, asks_judge=True)
    school.cache.answer(asked("what is rain"), "water")
    assert school.compute("so what is rain", text, options={"no_store": True}) == []
    assert (school.labels(), school.lessons.num_open) == (0, 0)


def test_a_hit_of_a_request_that_wants_nothing_stored_is_not_recorded(store: Store) -> None:
    school = School(store)
    school.cache.answer(asked("what is rain"), "water")
    request, match = school.ask("so what is rain", options={"no_store": True})
    assert told(match) == ("semantic", "similar")
    school.lessons.served(request, match)
    assert store.decisions.recent() == []


def test_a_hit_that_chance_would_answer_otherwise_is_not_audited(store: Store) -> None:
    school = School(store, lookup={"reuse_sampled": True})
    loose = Sampling(temperature=1.0, max_tokens=8)
    school.cache.answer(asked("what is rain", sampling=loose), "water")
    decision, _ = school.hit("so what is rain", sampling=loose)
    assert (decision.served, decision.audit) == (True, False)


def test_audits_of_a_threshold_policy_are_all_at_first_and_then_a_sample(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semcache.daemon.cache.lessons.FIRST_AUDITS", 3)
    school = School(store, audit_rate=0.0)
    entry = school.cache.answer(asked("what is rain"), "water")
    for i in range(3):
        decision, _ = school.hit("so what is rain")
        assert decision.audit, i
        store.decisions.label(decision.request_id, entry.id, True, "audit")
    assert not school.hit("so what is rain")[0].audit


# The judge


def test_what_the_text_leaves_open_is_asked_and_the_word_is_a_label(store: Store) -> None:
    school = School(store, learns=True, asks_judge=True)
    school.cache.answer(asked("what is rain"), "water")
    school.compute("so what is rain", "it is made of water")
    question = school.lessons.next_open()
    assert question is not None
    assert (question.prompt, question.answer) == ("so what is rain", "it is made of water")
    assert school.lessons.next_open() is None
    school.lessons.judged(question, None)
    assert school.labels() == 0, "a reply that was not understood"
    school.lessons.judged(question, True)
    (decision,) = store.decisions.of_request(question.request_id)
    assert (decision.label, decision.source) == (True, "equivalence")
    assert school.labels() == 1
    assert store.decisions.wrong_hits() == (0, 0)


def test_the_judge_of_a_hit_counts_as_an_audit_and_makes_no_alias(store: Store) -> None:
    school = School(store, asks_judge=True)
    school.cache.answer(asked("what is rain"), "water")
    decision, entry = school.hit("so what is rain")
    assert school.audit(decision, entry, "it is made of water") == (True, None)
    question = school.lessons.next_open()
    assert question is not None
    assert question.served
    school.lessons.judged(question, True)
    assert store.decisions.wrong_hits() == (1, 0)
    assert store.aliases.of(entry.id) == []


def test_the_judge_cannot_override_the_user_nor_label_what_is_gone(store: Store) -> None:
    school = School(store, asks_judge=True)
    school.cache.answer(asked("what is rain"), "water")
    decision, entry = school.hit("so what is rain")
    school.audit(decision, entry, "it is made of water")
    question = school.lessons.next_open()
    assert question is not None
    school.lessons.marked(decision, entry, False)
    school.lessons.judged(question, True)
    assert school.now(decision).label is False
    store.clear(user="os:1/ann")
    school.lessons.judged(question, True)
    assert store.decisions.recent() == []


def test_an_interrupted_question_comes_next_again_and_without_a_judge_there_is_none(store: Store) -> None:
    school = School(store, asks_judge=True)
    school.cache.answer(asked("what is rain"), "water")
    for i in range(3):
        school.compute(f"{i} what is rain", "it is made of water")
    first = school.lessons.next_open()
    assert first is not None
    school.lessons.reopen(first)
    asked_again: list[OpenQuestion | None] = [school.lessons.next_open() for _ in range(4)]
    assert [q.prompt if q is not None else None for q in asked_again] == [
        "0 what is rain", "1 what is rain", "2 what is rain", None,
    ]  # fmt: skip
    silent = School(store)
    silent.compute("now what is rain now now now", "it is made of water")
    assert silent.lessons.num_open == 0


def test_a_decision_is_considered_again_as_it_was(store: Store) -> None:
    school = School(store, learns=True)
    entry = school.cache.answer(asked("what is rain"), "water")
    request, match = school.ask("so what is rain")
    assert match.verdict is not None
    request.state, request.answer, request.finish_reason = RequestState.FINISHED, "water", "stop"
    school.lessons.computed(request, match)
    again, then = considered_of(school.decisions(request)[0], entry), match.verdict.considered[0]
    assert again.candidate == then.candidate
    assert (again.reason, again.p_correct, again.chosen) == (then.reason, then.p_correct, True)
    assert again.features == dict(then.features)


def test_no_judge_reads_an_answer_that_was_removed(store: Store) -> None:
    school = School(store, asks_judge=True)
    entry = school.cache.answer(asked("what is rain"), "water")
    decision, _ = school.hit("so what is rain")
    school.audit(decision, entry, "it is made of water")
    question = school.lessons.next_open()
    assert question is not None

    def like(scope: str, entry_id: str) -> OpenQuestion:
        candidate = replace(question.considered.candidate, scope=scope, entry_id=entry_id)
        return replace(question, considered=replace(question.considered, candidate=candidate))

    theirs = like(f"{entry.scope}2", "e_3")
    school.lessons._ask([question, like(f"{entry.scope}#run", "e_2"), theirs, like(f"{entry.scope}2", "e_4")])
    school.lessons.forget_scope(f"{entry.scope}#run")
    assert school.lessons.num_open == 3
    school.lessons.forget_entry(f"{entry.scope}2", "e_4")
    assert school.lessons.num_open == 2
    school.lessons._ask([like(f"{entry.scope}#run", "e_2")])
    school.lessons.forget_scope(entry.scope)
    assert (school.lessons.next_open(), school.lessons.next_open()) == (theirs, None)


@pytest.mark.parametrize("what", ["its scope", "its entry", "another entry"])
def test_an_interrupted_question_whose_answer_was_removed_is_not_asked_again(store: Store, what: str) -> None:
    school = School(store, asks_judge=True)
    entry = school.cache.answer(asked("what is rain"), "water")
    decision, _ = school.hit("so what is rain")
    school.audit(decision, entry, "it is made of water")
    question = school.lessons.next_open()
    assert question is not None
    if what == "its scope":
        school.lessons.forget_scope(entry.scope)
    else:
        school.lessons.forget_entry(entry.scope, entry.id if what == "its entry" else "e_other")
    school.lessons.reopen(question)
    assert school.lessons.next_open() is (question if what == "another entry" else None)
