"""Settings: defaults < user file < project file < `SEMCACHE_*` environment < flags; unknown keys are refused.

Checked by hand rather than with pydantic because every command of the CLI reads it before it can even find the socket,
and pydantic alone would double the start-up time of `ask`.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from semcache.errors import ConfigError

Value = str | int | float | bool
Check = Callable[[Any], str | None]

StrategyName = Literal["per_user", "global_user", "global_only", "no_cache"]
AllowGlobal = Literal["off", "own", "all"]
Exactness = Literal["bitwise", "rounding"]


def _one_of(*choices: str) -> Check:
    return lambda value: None if value in choices else f"must be one of {', '.join(choices)}"


def _between(low: float, high: float) -> Check:
    return lambda value: None if low <= value <= high else f"must be between {low:g} and {high:g}"


def _inside(low: float, high: float) -> Check:
    return lambda value: None if low < value < high else f"must be between {low:g} and {high:g}, both excluded"


def _at_least(low: float) -> Check:
    return lambda value: None if value >= low else f"must be at least {low:g}"


def _zero_or_at_least(low: int) -> Check:
    return lambda value: None if value == 0 or value >= low else f"must be 0 (automatic) or at least {low}"


def _block_size(value: int) -> str | None:
    return None if value in (16, 32, 64, 128, 256) else "must be one of 16, 32, 64, 128, 256"


def _key(default: Value, help_text: str, check: Check | None = None) -> Any:
    return field(default=default, metadata={"help": help_text, "check": check})


@dataclass(frozen=True)
class ModelConfig:
    name: str = _key("mini", "built-in `mini`, a hub id, or a local folder")
    device: str = _key("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = _key(
        "auto", "auto is bfloat16 on CUDA and float32 on CPU", _one_of("auto", "float32", "bfloat16", "float16")
    )


@dataclass(frozen=True)
class GenerationConfig:
    temperature: float = _key(0.0, "used when a request names none; 0 is greedy", _between(0, 2))
    max_tokens: int = _key(256, "most tokens of an answer when a request names no limit", _at_least(1))


@dataclass(frozen=True)
class EngineConfig:
    slots: int = _key(0, "requests computed at once; 0 sizes it from free memory", _zero_or_at_least(1))
    max_context_tokens: int = _key(0, "served context; 0 is the smaller of the model's and 8192", _zero_or_at_least(16))
    prefill_chunk_tokens: int = _key(
        128, "prefill step; in bitwise also the cut of KV reuse, and a multiple of cache.block_tokens", _at_least(16)
    )
    tie_margin: float = _key(
        0.0, "logits closer than this are a tie, which drafts leave to plain decode; 0 follows the dtype", _at_least(0)
    )


@dataclass(frozen=True)
class CacheConfig:
    strategy: str = _key("per_user", "what a request may read and where it is stored", _one_of(*get_args(StrategyName)))
    allow_global: str = _key("own", "who shares the global scope", _one_of(*get_args(AllowGlobal)))
    exactness: Exactness = _key(  # noqa: RUF009 - a string, as the others
        "bitwise",
        "bitwise: restored KV gives bit-identical logits; rounding: more is reused, logits may differ in last bits",
        _one_of(*get_args(Exactness)),
    )
    block_tokens: int = _key(64, "tokens of one KV block", _block_size)
    ram_bytes: int = _key(0, "RAM tier; 0 is 10 % of memory", _at_least(0))
    disk_bytes: int = _key(
        0, "disk tier; 0 is the smaller of 20 GB and a quarter of what is free or its own", _at_least(0)
    )
    ttl_s: int = _key(0, "age at which an entry expires; 0 is never", _at_least(0))
    user_quota_bytes: int = _key(0, "bytes one user may keep; 0 is no limit", _at_least(0))
    eviction: str = _key(
        "lru", "which block leaves first when a tier is full", _one_of("lru", "lfu", "fifo", "saved_compute")
    )
    durable: bool = _key(False, "fsync every file: survives a power cut, slower")
    reuse_sampled: bool = _key(False, "also replay answers that were sampled without a seed")


@dataclass(frozen=True)
class DraftConfig:
    enabled: bool = _key(True, "let the model check a similar prompt's answer as a draft of its own")


@dataclass(frozen=True)
class SemanticConfig:
    policy: str = _key(
        "verified",
        "verified serves what evidence supports; threshold above semantic.threshold; off never serves",
        _one_of("verified", "threshold", "off"),
    )
    max_error: float = _key(0.01, "most wrong answers per request that `verified` may serve", _inside(0, 1))
    max_hit_error: float = _key(0.02, "most wrong answers per semantic hit that `verified` may serve", _inside(0, 1))
    audit_rate: float = _key(
        0.05, "share of semantic hits computed again when idle, after the first 150", _between(0, 1)
    )
    equivalence: str = _key(
        "text",
        "how two answers are compared: text, embedding, or the model as judge",
        _one_of("text", "embedding", "judge"),
    )
    threshold: float = _key(0.95, "cosine needed to serve another wording's answer; higher is stricter", _between(0, 1))
    embedder: str = _key("sentence-transformers/all-MiniLM-L6-v2", "any sentence-transformers model; `off` for none")


@dataclass(frozen=True)
class DaemonConfig:
    keep_alive_s: int = _key(600, "idle time after which the model leaves memory; 0 is never", _at_least(0))
    exit_after_s: int = _key(7200, "idle time after which an autostarted daemon ends; 0 is never", _at_least(0))
    max_queue: int = _key(256, "requests waiting before new ones are refused", _at_least(1))
    request_timeout_s: int = _key(600, "longest time for one request", _at_least(1))


@dataclass(frozen=True)
class Config:
    """The whole tree; `Config.load` is the only way to one that is not all defaults."""

    model: ModelConfig = ModelConfig()
    generation: GenerationConfig = GenerationConfig()
    engine: EngineConfig = EngineConfig()
    cache: CacheConfig = CacheConfig()
    draft: DraftConfig = DraftConfig()
    semantic: SemanticConfig = SemanticConfig()
    daemon: DaemonConfig = DaemonConfig()
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    @staticmethod
    def load(user_file: Path, *, flags: Mapping[str, Value] | None = None, project_dir: Path | None = None) -> Config:
        """Merge every source; raises ConfigError that names file, key and the nearest known key."""
        merged: dict[str, Value] = {}
        origins: dict[str, str] = {}
        for origin, layer in _layers(user_file, project_dir or Path.cwd(), flags or {}):
            for key, value in layer.items():
                merged[key] = parse_value(key, value, origin)
                origins[key] = origin
        return _build(merged, origins)

    def get(self, key: str) -> Value:
        section, name = require_key(key).split(".")
        value: Value = getattr(getattr(self, section), name)
        return value


def _sections() -> Iterator[tuple[str, type]]:
    for section in fields(Config):
        if section.name != "origins":
            yield section.name, type(section.default)


def keys() -> dict[str, tuple[type, Value, str]]:
    """Every key with its type, default and one-line help; the docs and `config list` are made from it."""
    known: dict[str, tuple[type, Value, str]] = {}
    for section, cls in _sections():
        for item in fields(cls):
            default: Any = item.default
            known[f"{section}.{item.name}"] = (type(default), default, item.metadata["help"])
    return known


def require_key(key: str, origin: str = "") -> str:
    """`key`, or ConfigError with the nearest known one."""
    known = keys()
    if key in known:
        return key
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4) or [k for k in known if k.endswith(f".{key}")]
    hint = f"; did you mean {near[0]!r}?" if near else "; `semcache config list` shows every key"
    raise ConfigError(f"unknown config key {key!r}{f' in {origin}' if origin else ''}{hint}", param=key)


def parse_value(key: str, value: object, origin: str) -> Value:
    """`value` as the type of `key`, checked. Text (environment, `config set`) is converted; other types must fit."""
    kind, _default, _help = keys()[require_key(key, origin)]
    parsed = _convert(kind, value)
    if parsed is None:
        raise ConfigError(f"{key} = {value!r} ({origin}): expected {_TYPE_WORDS[kind]}", param=key)
    problem = _check(key, parsed)
    if problem:
        raise ConfigError(f"{key} = {parsed!r} ({origin}): {problem}", param=key)
    return parsed


_TYPE_WORDS: dict[type, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_BOOLS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _convert(kind: type, value: object) -> Value | None:
    if kind is bool:
        return value if isinstance(value, bool) else _BOOLS.get(value.lower()) if isinstance(value, str) else None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    if kind is str:
        return value if isinstance(value, str) else None
    try:
        if kind is float:
            return float(value)
        number = float(value)
        return int(number) if number == int(number) else None
    except (ValueError, OverflowError):
        return None


def _check(key: str, value: Value) -> str | None:
    section, name = key.split(".")
    item = next(f for f in fields(dict(_sections())[section]) if f.name == name)
    check: Check | None = item.metadata["check"]
    return check(value) if check else None


def _layers(
    user_file: Path, project_dir: Path, flags: Mapping[str, Value]
) -> Iterator[tuple[str, Mapping[str, object]]]:
    yield str(user_file), read_file(user_file)
    project_file = project_dir / "semcache.toml"
    yield str(project_file), read_file(project_file)
    yield "environment", _from_environment()
    yield "command line", flags


def read_file(path: Path) -> dict[str, object]:
    """The flat `section.key` values of one TOML file; an absent file is empty."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read config file {path}: {error}") from error
    flat: dict[str, object] = {}
    for section, body in tree.items():
        if not isinstance(body, dict):
            require_key(section, str(path))
        flat.update({f"{section}.{name}": value for name, value in body.items()})
    return flat


# Variables that are ours but are no config keys.
NOT_CONFIG = {"SEMCACHE_HOME", "SEMCACHE_SOCKET", "SEMCACHE_URL", "SEMCACHE_TOKEN"}


def _from_environment() -> dict[str, object]:
    """`SEMCACHE_MODEL_NAME` is `model.name`; a `SEMCACHE_` variable that fits no key is an error, as in a file."""
    known = {f"SEMCACHE_{key.replace('.', '_').upper()}": key for key in keys()}
    found: dict[str, object] = {}
    for variable, value in os.environ.items():
        if variable.startswith("SEMCACHE_") and variable not in NOT_CONFIG:
            guess = variable.removeprefix("SEMCACHE_").lower().replace("_", ".", 1)
            found[known.get(variable) or require_key(guess, f"environment variable {variable}")] = value
    return found


def _build(merged: Mapping[str, Value], origins: Mapping[str, str]) -> Config:
    parts = {
        section: cls(**{f.name: merged[f"{section}.{f.name}"] for f in fields(cls) if f"{section}.{f.name}" in merged})
        for section, cls in _sections()
    }
    config = Config(**parts, origins=dict(origins))
    if config.cache.exactness == "bitwise" and config.engine.prefill_chunk_tokens % config.cache.block_tokens:
        raise ConfigError(
            f"engine.prefill_chunk_tokens = {config.engine.prefill_chunk_tokens} is not a multiple of "
            f"cache.block_tokens = {config.cache.block_tokens}; reuse is cut at chunk "
            "boundaries, so blocks must tile a chunk"
        )
    return config
