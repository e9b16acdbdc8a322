"""Decisions are kept with what turned out to be true, and judged hits are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.store import decisions
from semcache.store.decisions import Decision
from semcache.store.store import Store

from .conftest import OpenStore
from .samples import ALICE, BOB, FEW, PLENTY, Clock, decision, entry
from .test_entries import edit


def bare(found: list[Decision]) -> list[str]:
    return [item.request_id.removeprefix("req_") for item in found]


def test_a_decision_comes_back_as_it_went_in(store: Store, open_store: OpenStore) -> None:
    store.put_entry(entry(1))
    made = [
        decision(1, prompt="ü 😀", features={"margin": 0.1, "numbers": 1.0}),
        decision(2, request_id="req_1", p_correct=None, matched_prompt=None, served=False, audit=False, features={}),
        decision(3, audited_at=5.0, label=False, source="audit", matched_prompt=None),
    ]
    assert store.decisions.record(made)
    assert store.decisions.record([])
    again = open_store().decisions
    assert [item.number for item in again.of_request("req_1")] == [1, 2]
    for kept, original in zip(again.recent(newest_first=False), made, strict=True):
        assert kept == Decision(**{**vars(original), "number": kept.number})
    assert again.of_request("req_9") == []


def test_numbers_of_numpy_and_text_without_utf8_can_be_recorded(store: Store) -> None:
    odd: Any = {"score": np.float32(0.5), "p_correct": np.float32(0.25), "features": {"margin": np.float32(2)}}
    assert store.decisions.record([decision(1, prompt="\ud800?", served=np.True_, **odd)])
    (found,) = store.decisions.recent()
    assert (found.prompt, found.score, found.p_correct, found.features, found.served) == (
        "??",
        0.5,
        0.25,
        {"margin": 2},
        True,
    )


def test_a_decision_is_recorded_once(store: Store) -> None:
    assert store.decisions.record([decision(1)])
    assert store.decisions.label("req_1", entry(1).id, False, "audit")
    assert store.decisions.record([decision(1, reason="again"), decision(2)])
    assert [(item.label, item.reason) for item in store.decisions.recent()] == [(None, "similar"), (False, "similar")]


def test_a_decision_that_lacks_something_is_refused_with_all_others(store: Store) -> None:
    assert not store.decisions.record([decision(1), decision(2, reason=None)])
    assert store.decisions.recent() == []
    assert store.counters()["write_failures"] == 1


def test_the_users_word_is_final_for_everyone_but_the_user(store: Store) -> None:
    store.decisions.record([decision(1)])
    label = store.decisions.label
    of = lambda: [(d.label, d.source) for d in store.decisions.recent()]  # noqa: E731
    assert label("req_1", entry(1).id, True, "equivalence")
    assert label("req_1", entry(1).id, False, "audit")
    assert of() == [(False, "audit")]
    assert label("req_1", entry(1).id, True, "user")
    for source in ("draft", "equivalence", "audit"):
        assert not label("req_1", entry(1).id, False, source)
    assert of() == [(True, "user")]
    assert label("req_1", entry(1).id, False, "user")
    assert of() == [(False, "user")]
    assert not label("req_1", entry(2).id, True, "audit")
    assert not label("req_2", entry(1).id, True, "user")


def test_an_unknown_source_is_no_label(store: Store) -> None:
    store.decisions.record([decision(1)])
    source: Any = "rumour"
    assert not store.decisions.label("req_1", entry(1).id, True, source)
    assert store.decisions.recent()[0].label is None


def test_audits_are_due_until_somebody_judges_oldest_first(store: Store, clock: Clock) -> None:
    store.decisions.record([decision(0, audit=False), decision(1, served=False), *(decision(n) for n in range(2, 7))])
    due = lambda limit=99: bare(store.decisions.due_audits(limit))  # noqa: E731
    assert (due(), due(2), store.decisions.num_due()) == (["2", "3", "4", "5", "6"], ["2", "3"], 5)
    clock.now_s = 7.0
    assert store.decisions.label("req_3", entry(3).id, True, "audit")
    assert store.decisions.label("req_4", entry(4).id, True, "user")
    assert store.decisions.close_audit("req_5", entry(5).id)
    assert not store.decisions.close_audit("req_5", entry(6).id)
    assert (due(), store.decisions.num_due()) == (["2", "6"], 2)
    kept = {item.request_id: item for item in store.decisions.recent()}
    assert [kept[f"req_{n}"].audited_at for n in range(2, 7)] == [None, 7.0, None, 7.0, None]
    assert kept["req_5"].label is None


def test_recent_filters(store: Store) -> None:
    store.decisions.record(
        [
            decision(0),
            decision(1, user=BOB.user, scope="global"),
            decision(2, served=False),
            decision(3, scope="global"),
        ]
    )
    store.decisions.label("req_1", entry(1).id, True, "audit")
    recent = lambda **filters: bare(store.decisions.recent(**filters))  # noqa: E731
    assert recent() == recent(limit=-1) == ["3", "2", "1", "0"]
    assert (recent(limit=2), recent(limit=2, newest_first=False)) == (["3", "2"], ["2", "3"])
    assert (recent(scopes=["global"]), recent(scopes=[])) == (["3", "1"], [])
    assert recent(scopes=["global"], users=[ALICE.user]) == ["3"]
    assert (recent(served=False), recent(served=True)) == (["2"], ["3", "1", "0"])
    assert (recent(labelled=True), recent(labelled=False, served=True)) == (["1"], ["3", "0"])


JUDGED = st.tuples(
    st.sampled_from([ALICE.user, BOB.user]), st.sampled_from(["s", "global"]), st.booleans(),
    st.sampled_from([None, "draft", "equivalence", "audit", "user"]), st.booleans(),
)  # fmt: skip


@FEW
@given(st.lists(JUDGED, max_size=12))
def test_wrong_hits_are_served_judged_and_different(tmp_path_factory: pytest.TempPathFactory, made: list[Any]) -> None:
    store = Store.open(tmp_path_factory.mktemp("decisions"), PLENTY)
    try:
        for number, (user, scope, served, source, same) in enumerate(made):
            assert store.decisions.record([decision(number, user=user, scope=scope, served=served)])
            if source is not None:
                assert store.decisions.label(f"req_{number}", entry(number).id, same, source)
        hits = [item for item in made if item[2] and item[3] in ("audit", "user")]
        count = lambda some: (len(some), sum(not item[4] for item in some))  # noqa: E731
        assert store.decisions.wrong_hits() == count(hits)
        assert store.decisions.wrong_hits(["s"], [BOB.user]) == count([i for i in hits if i[:2] == (BOB.user, "s")])
        assert store.decisions.wrong_hits(scopes=["global"]) == count([i for i in hits if i[1] == "global"])
        users = {item[0] for item in hits}
        assert store.decisions.wrong_hits_by_user() == {u: count([i for i in hits if i[0] == u]) for u in users}
    finally:
        store.close()


def test_the_newest_decisions_stay(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "MAX_DECISIONS", 5)
    for first in range(0, 12, 3):
        store.decisions.record([decision(first + number) for number in range(3)])
    assert bare(store.decisions.recent()) == ["11", "10", "9", "8", "7"]


def test_decisions_are_bounded_in_bytes_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "MAX_DECISION_BYTES", 1_000)
    for first in range(0, 12, 3):
        made = [decision(first + number, prompt="q" * 298, features={}) for number in range(3)]
        assert store.decisions.record(made)
        assert store.decisions.record(made), "once is all that counts"
    assert bare(store.decisions.recent()) == ["11", "10", "9", "8"]


def test_a_deleted_entry_takes_its_prompt_along_and_leaves_the_numbers(store: Store) -> None:
    store.put_entry(entry(1))
    store.put_entry(entry(2))
    store.decisions.record([decision(1), decision(2), decision(3, matched_prompt="of no entry")])
    store.delete_entries([entry(1).id])
    kept = {item.request_id: item for item in store.decisions.recent()}
    assert kept["req_1"] == Decision(**{**vars(decision(1)), "matched_prompt": None, "number": 1})
    assert (kept["req_2"].matched_prompt, kept["req_3"].matched_prompt) == ("question 2", None)
    assert store.decisions.label("req_1", entry(1).id, False, "user")


@pytest.mark.parametrize(
    "change",
    [
        "features = 'x'", "features = '[]'", "features = x'ff'", "served = 'x'",
        *(f"{column} = {value}" for column in ("at", "score", "p_correct", "audited_at") for value in ("'x'", "9e999")),
        "at = 1e300", "at = -1e300", "at = x'ff'", """features = '{"margin": 1e999}'""",
        *(f"{column} = x'ff'" for column in ("scope", "user", "entry_id", "prompt", "matched_prompt", "reason")),
    ],
)  # fmt: skip
def test_a_damaged_row_is_left_out_and_counted(store: Store, data_dir: Path, change: str) -> None:
    store.decisions.record([decision(1), decision(2)])
    edit(data_dir, f"UPDATE decisions SET {change} WHERE request_id = 'req_1'")
    assert bare(store.decisions.recent()) == ["2"]
    assert store.decisions.of_request("req_1") == []
    assert store.counters()["damaged_decisions"] == 2
