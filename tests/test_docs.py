"""The documentation cannot drift: what it must name is read from the code."""

from __future__ import annotations

import re
from pathlib import Path

from semcache import config
from semcache.daemon.cache.strategy import STRATEGIES
from semcache.errors import SemcacheError, subclasses
from semcache.store.evict import ORDERS
from semcache.wire import protocol

ROOT = Path(__file__).resolve().parent.parent


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_every_config_key_is_documented_with_its_default() -> None:
    documented = dict(re.findall(r"^\| `([a-z_.]+)` \| `([^`]*)` \|", read("docs/config.md"), re.MULTILINE))
    defaults = {
        key: str(default).lower() if isinstance(default, bool) else str(default)
        for key, (_, default, _) in config.keys().items()
    }
    assert documented == defaults


def test_every_error_code_and_outcome_is_documented() -> None:
    text = read("docs/http-api.md")
    for cls in subclasses(SemcacheError):
        assert f"`{cls.code}`" in text, cls.code
    for outcome in protocol.OUTCOMES:
        assert f"`{outcome}`" in text


def test_one_vocabulary() -> None:
    assert tuple(STRATEGIES) == protocol.STRATEGIES
    check = config.CacheConfig.__dataclass_fields__["strategy"].metadata["check"]
    assert all(check(name) is None for name in STRATEGIES)
    assert all(config.CacheConfig.__dataclass_fields__["eviction"].metadata["check"](name) is None for name in ORDERS)


def test_tracked_text_names_no_path_of_one_machine() -> None:
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "pyproject.toml", ROOT / "Makefile"]:
        assert str(ROOT) not in path.read_text(encoding="utf-8"), path
