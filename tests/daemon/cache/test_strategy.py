"""The four strategies read and write exactly their scopes; users and principals never mix."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.daemon.cache.strategy import STRATEGIES, access, is_within, principal_of, user_scope
from semcache.errors import ForbiddenError, UsageError


def scopes(
    strategy: str, user: str = "os:1/ann", allow: str = "own", namespace: str = ""
) -> tuple[list[str], list[str]]:
    granted = access(strategy, user=user, allow_global=allow, namespace=namespace)
    return [s.name for s in granted.read], [s.name for s in granted.write]


def test_the_table() -> None:
    user, own = "user:os:1/ann", "global:os:1"
    assert scopes("per_user") == ([user], [user])
    assert scopes("global_user") == ([user, own], [user, own])
    assert scopes("global_only") == ([own], [own])
    assert scopes("no_cache") == ([], [])


def test_global_of_everybody_is_one_scope() -> None:
    assert scopes("global_only", allow="all")[0] == scopes("global_only", user="os:2", allow="all")[0] == ["global"]


def test_own_global_is_not_shared_between_principals() -> None:
    assert scopes("global_only", user="os:1/ann")[0] == scopes("global_only", user="os:1/bob")[0]
    assert scopes("global_only", user="os:1/ann")[0] != scopes("global_only", user="os:2/ann")[0]


@pytest.mark.parametrize("strategy", ["global_user", "global_only"])
def test_global_off_is_forbidden_not_narrowed(strategy: str) -> None:
    with pytest.raises(ForbiddenError, match="allow_global is off"):
        scopes(strategy, allow="off")


def test_unknown_strategy_is_an_error() -> None:
    with pytest.raises(UsageError, match="per_user, global_user, global_only, no_cache"):
        scopes("globl_user")


@given(
    st.sampled_from(sorted(STRATEGIES)), st.from_regex(r"os:[0-9]{1,5}(/[A-Za-z0-9._-]{1,8})?", fullmatch=True),
    st.from_regex(r"os:[0-9]{1,5}(/[A-Za-z0-9._-]{1,8})?", fullmatch=True), st.sampled_from(["own", "all"]),
    st.sampled_from(["", "rp-1", "rp-2"]), st.sampled_from(["", "rp-1", "rp-2"]),
)  # fmt: skip
def test_two_users_share_a_scope_only_where_the_table_says(
    strategy: str, a: str, b: str, allow: str, namespace_a: str, namespace_b: str
) -> None:
    read = set(scopes(strategy, a, allow, namespace_a)[0]) & set(scopes("global_user", b, allow, namespace_b)[1])
    if namespace_a != namespace_b or strategy in ("no_cache",):
        assert not read
    if strategy == "per_user" and a != b:
        assert not read
    if principal_of(a) != principal_of(b) and allow == "own":
        assert not read


def test_a_scope_holds_its_namespaces_and_no_user_whose_name_is_longer() -> None:
    ann = user_scope("os:1/ann").name
    assert is_within(ann, ann)
    assert is_within(user_scope("os:1/ann", "run").name, ann)
    assert not is_within(ann, user_scope("os:1/ann", "run").name)
    assert not is_within(user_scope("os:1/anna").name, ann)
    assert not is_within(ann, user_scope("os:1").name)
