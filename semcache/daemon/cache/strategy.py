"""Who may reuse what: the four strategies as rows of one table, and the scopes they name.

A new strategy is one function and one row; the CLI's choices, validation, docs and tests read the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from semcache.errors import ForbiddenError, UsageError


@dataclass(frozen=True)
class Scope:
    """A set of entries and blocks that is searched and written as one. `name` is what the store keeps."""

    kind: str  # "user" or "global": what the receipt says
    name: str


@dataclass(frozen=True)
class Access:
    """The scopes that one request reads, in order of preference, and the scopes it writes."""

    read: tuple[Scope, ...]
    write: tuple[Scope, ...]


def _per_user(user: Scope, shared: Scope) -> Access:
    return Access((user,), (user,))


def _global_user(user: Scope, shared: Scope) -> Access:
    return Access((user, shared), (user, shared))


def _global_only(user: Scope, shared: Scope) -> Access:
    return Access((shared,), (shared,))


def _no_cache(user: Scope, shared: Scope) -> Access:
    return Access((), ())


STRATEGIES: dict[str, Callable[[Scope, Scope], Access]] = {
    "per_user": _per_user,
    "global_user": _global_user,
    "global_only": _global_only,
    "no_cache": _no_cache,
}


def principal_of(user: str) -> str:
    """`os:1000/alice` acts for the principal `os:1000`."""
    return user.split("/", 1)[0] if user.startswith("os:") else user


def user_scope(user: str, namespace: str = "") -> Scope:
    return Scope("user", _in_namespace(f"user:{user}", namespace))


def global_scope(user: str, allow_global: str, namespace: str = "") -> Scope:
    """The scope that `allow_global` lets this user share: one for everybody, or one for each principal."""
    name = "global" if allow_global == "all" else f"global:{principal_of(user)}"
    return Scope("global", _in_namespace(name, namespace))


def is_within(name: str, scope: str) -> bool:
    """Whether what is done to a scope as a whole, such as clearing it, is done to this one too: a namespace of it."""
    return name == scope or name.startswith(f"{scope}#")


def access(strategy: str, *, user: str, allow_global: str, namespace: str = "") -> Access:
    """The scopes of one request; an unknown strategy or a forbidden global scope is an error, never a default."""
    row = STRATEGIES.get(strategy)
    if row is None:
        raise UsageError(
            f"unknown cache strategy {strategy!r}; choose one of {', '.join(STRATEGIES)}", param="cache_strategy"
        )
    user_part, shared = user_scope(user, namespace), global_scope(user, allow_global, namespace)
    granted = row(user_part, shared)
    if allow_global == "off" and shared in (*granted.read, *granted.write):
        raise ForbiddenError(
            f"strategy {strategy!r} uses the global scope and cache.allow_global is off; "
            "use per_user, or set cache.allow_global to own or all",
            param="cache_strategy",
        )
    return granted


def _in_namespace(scope: str, namespace: str) -> str:
    return f"{scope}#{namespace}" if namespace else scope
