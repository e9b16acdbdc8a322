"""`semcache config`: what is shown, and files that keep everything but the one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from semcache.cli.toml_edit import with_key, without_key
from semcache.config import keys
from semcache.errors import ConfigError
from tests.cli.conftest import Semcache
from tests.cli.fake_daemon import FakeDaemon

FILE = """# mine
daemon.keep_alive_s = 5 # short

[model] # which
name = "mini"  # built in

[cache]
ram_bytes = 0

# the end
"""


def test_a_value_is_replaced_in_place() -> None:
    assert with_key(FILE, "model.name", 'a"b') == FILE.replace('"mini"', '"a\\"b"')
    assert with_key(FILE, "daemon.keep_alive_s", 7) == FILE.replace("= 5", "= 7")


def test_a_key_joins_its_section_or_makes_one() -> None:
    assert "ram_bytes = 0\n\n# the end\nttl_s = 3\n" in with_key(FILE, "cache.ttl_s", 3)
    assert with_key(FILE, "semantic.threshold", 0.9).endswith("# the end\n\n[semantic]\nthreshold = 0.9\n")
    assert with_key("", "cache.durable", True) == "[cache]\ndurable = true\n"


def test_a_key_goes_with_its_line() -> None:
    assert without_key(FILE, "model.name") == FILE.replace('name = "mini"  # built in\n', "")
    assert without_key(FILE, "cache.ttl_s") == FILE


@pytest.mark.parametrize("text", ['model = {name = "x"}\n', '[model]\nname = """\nx"""\n', '["model"]\nname = "x"\n'])
def test_another_way_of_writing_is_refused_not_damaged(text: str) -> None:
    with pytest.raises(ConfigError, match="by hand"):
        with_key(text, "model.name", "y")


def test_set_get_unset(semcache: Semcache, home: Path) -> None:
    file = home / "config" / "config.toml"
    assert semcache("config", "path").out == f"{file}\n"
    assert semcache("config", "set", "semantic.threshold", "0.9").code == 0
    assert file.read_text() == "[semantic]\nthreshold = 0.9\n"
    assert semcache("config", "get", "semantic.threshold").out == "0.9\n"
    got = json.loads(semcache("config", "get", "semantic.threshold", "--json").out)
    assert got == {"key": "semantic.threshold", "value": 0.9, "origin": str(file)}
    assert json.loads(semcache("config", "unset", "semantic.threshold", "--json").out)["removed"] is True
    assert semcache("config", "get", "semantic.threshold").out == "0.95\n"
    assert semcache("config", "unset", "semantic.threshold").code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["set", "semantic.treshold", "0.9"], "semantic.threshold"),
        (["set", "semantic.threshold", "2"], "between 0 and 1"),
        (["set", "semantic.threshold", "high"], "a number"),
        (["set", "engine.prefill_chunk_tokens", "100"], "multiple"),
        (["set", "cache.exactness", "close"], "bitwise, rounding"),
        (["get", "zzzzqq"], "config list"),
        (["unset", "model.nam"], "model.name"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(
    semcache: Semcache, home: Path, arguments: list[str], words: str
) -> None:
    ran = semcache("config", *arguments)
    assert ran.code == 2
    assert words in ran.err
    assert not (home / "config").exists()


def test_blocks_need_not_tile_a_chunk_where_reuse_is_cut_anywhere(semcache: Semcache) -> None:
    assert semcache("config", "set", "cache.exactness", "rounding").code == 0
    assert semcache("config", "set", "engine.prefill_chunk_tokens", "100").code == 0
    back = semcache("config", "set", "cache.exactness", "bitwise")
    assert back.code == 2
    assert "multiple" in back.err


def test_a_key_nobody_knows_can_be_removed_again(semcache: Semcache, home: Path) -> None:
    (home / "config").mkdir()
    file = home / "config" / "config.toml"
    file.write_text("[model]\nnam = 1\n")
    assert semcache("config", "list").code == 2
    assert semcache("config", "unset", "model.nam").code == 0
    assert file.read_text() == "[model]\n"


def test_a_link_stays_a_link(semcache: Semcache, home: Path) -> None:
    (home / "config").mkdir()
    (home / "dotfile").write_text("")
    (home / "dotfile").chmod(0o644)
    (home / "config" / "config.toml").symlink_to(home / "dotfile")
    semcache("config", "set", "model.name", "x")
    assert (home / "config" / "config.toml").is_symlink()
    assert "x" in (home / "dotfile").read_text()
    assert (home / "dotfile").stat().st_mode & 0o777 == 0o644


def test_list_shows_every_key_with_its_origin(semcache: Semcache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMCACHE_MODEL_NAME", "other")
    rows = {row["key"]: row for row in json.loads(semcache("config", "list", "--json").out)["config"]}
    assert set(rows) == set(keys())
    assert (rows["model.name"]["value"], rows["model.name"]["origin"]) == ("other", "environment")
    assert rows["cache.ttl_s"]["origin"] == "default"
    assert "model.name" in semcache("config", "list").out


def test_a_running_daemon_must_be_restarted(semcache: Semcache, daemon: FakeDaemon) -> None:
    assert "daemon restart" in semcache("config", "set", "model.name", "x").err
