"""`/metrics`: text that a scraper reads back to the same numbers, without a word of what anybody asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.daemon import metrics
from semcache.wire.status import STATUS_SCHEMA, LatencyStatus, Status

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
_SAMPLE = re.compile(r'(?P<name>[a-z_]+)(?:\{(?P<labels>(?:[a-z]+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (?P<value>\S+)')
_LABEL = re.compile(r'([a-z]+)="((?:[^"\\\n]|\\["\\n])*)"')
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> tuple[Samples, dict[str, str]]:
    """Samples by name and labels, and the type of every metric; anything outside the format is an error."""
    samples: Samples = {}
    types: dict[str, str] = {}
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            continue
        if line.startswith("# TYPE "):
            _hash, _type, name, kind = line.split(" ")
            assert name not in types
            types[name] = kind
            continue
        found = _SAMPLE.fullmatch(line)
        assert found is not None, line
        assert list(types)[-1] == found["name"], "samples follow their own TYPE"
        labels = frozenset((name, _unescaped(value)) for name, value in _LABEL.findall(found["labels"] or ""))
        assert (found["name"], labels) not in samples
        samples[found["name"], labels] = float(found["value"])
    return samples, types


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], text)


def status(**changes: Any) -> Status:
    latency: LatencyStatus = {
        "n": 3, "ttft_p50": 12.5, "ttft_p95": 40.0, "total_p50": 250.0, "total_p95": None,
    }  # fmt: skip
    made: Status = {
        "schema": STATUS_SCHEMA, "version": "0.1.0", "protocol": 1, "pid": 4242, "state": "ready",
        "uptime_s": 61.5, "autostarted": False, "socket": "/home/alice/api.sock", "url": None,
        "data_dir": "/home/alice/data",
        "model": {
            "name": "mini", "state": "ready", "stage": None, "progress": None, "error": None,
            "architecture": "LlamaForCausalLM", "parameters": 5_000_000, "device": "cpu", "dtype": "float32",
            "context_tokens": 2048, "slots": 8, "fingerprint": "abc", "weights_bytes": 20_000_000,
            "kv_bytes_per_token": 1024, "unloads_in_s": None,
        },
        "queue": {"running": 2, "waiting": 5}, "entries": 7, "blocks": 11,
        "tiers": {"ram": {"used_bytes": 10, "limit_bytes": 20, "items": 3}},
        "outcomes": {"exact": 4, "miss": 6}, "latency": {"exact": latency, "all": latency},
        "semantic": {
            "policy": "verified", "threshold": 0.95, "max_error": 0.01, "max_hit_error": 0.02, "audit_rate": 0.05,
            "equivalence": "text", "embedder": "minilm", "state": "ready", "reason": None, "audits": 38, "wrong": 1,
            "rate": 0.0263, "ci95": (0.0047, 0.1349), "due_audits": 3, "suspended": ["os:1000/alice", "global"],
            "drafts": True,
        },
        "counters": {"evictions": 12, "damaged_blocks": 0}, "warnings": ["alice, look"],
    }  # fmt: skip
    return cast("Status", {**made, **changes})


def test_the_numbers_come_back() -> None:
    samples, types = parse(metrics.render(status()))

    def value(name: str, **labels: str) -> float:
        return samples[f"semcache_{name}", frozenset(labels.items())]

    assert value("info", version="0.1.0") == 1
    assert value("uptime_seconds") == 61.5
    assert value("state", state="ready") == 1
    assert value("state", state="draining") == 0
    assert value("requests_total", outcome="exact") == 4
    assert value("requests_total", outcome="draft") == 0
    assert value("ttft_seconds", outcome="exact", quantile="0.5") == 0.0125
    assert value("request_seconds", outcome="all", quantile="0.5") == 0.25
    assert value("queue_requests", state="waiting") == 5
    assert value("model_state", state="ready") == 1
    assert value("tier_limit_bytes", tier="ram") == 20
    assert value("entries") == 7
    assert value("store_events_total", event="evictions") == 12
    assert value("semantic_audits_total") == 38
    assert value("semantic_wrong_total") == 1
    assert value("semantic_wrong_ratio") == 0.0263
    assert (value("semantic_wrong_ratio_low"), value("semantic_wrong_ratio_high")) == (0.0047, 0.1349)
    assert value("semantic_suspended_scopes") == 2
    assert value("drafts_enabled") == 1
    assert {name for name, kind in types.items() if kind == "counter"} == {n for n in types if n.endswith("_total")}
    assert types["semcache_ttft_seconds"] == "summary"


def test_unknown_is_left_out_and_never_0() -> None:
    model = dict.fromkeys(status()["model"]) | {"name": "mini", "state": "unloaded"}
    semantic = {**status()["semantic"], "audits": 0, "wrong": 0, "rate": None, "ci95": None, "suspended": []}
    samples, types = parse(metrics.render(status(model=model, semantic=semantic, latency={}, tiers={}, counters={})))
    names = {name for name, _labels in samples}
    assert names == set(types)
    unknown = {
        "ttft_seconds", "request_seconds", "model_weights_bytes", "model_slots", "model_context_tokens",
        "tier_used_bytes", "tier_limit_bytes", "tier_items", "store_events_total", "semantic_wrong_ratio",
        "semantic_wrong_ratio_low", "semantic_wrong_ratio_high",
    }  # fmt: skip
    assert {f"semcache_{metric.name}" for metric in metrics.METRICS} - names == {f"semcache_{n}" for n in unknown}
    assert samples["semcache_model_info", frozenset({("name", "mini")})] == 1
    assert samples["semcache_semantic_suspended_scopes", frozenset()] == 0


@pytest.mark.parametrize("name", ["/home/alice/models/tiny", "~alice/models/tiny", "./alice/tiny"])
def test_no_user_no_path_no_prompt(name: str) -> None:
    model, semantic = {**status()["model"], "name": name}, {**status()["semantic"], "embedder": name}
    text = metrics.render(status(model=model, semantic=semantic))
    assert "alice" not in text
    assert text.count('"tiny"') == 2


def test_a_hub_id_stays_whole() -> None:
    assert 'name="Qwen/Qwen3-8B"' in metrics.render(status(model={**status()["model"], "name": "Qwen/Qwen3-8B"}))


@given(st.text())
def test_any_label_comes_back(text: str) -> None:
    samples, _types = parse(metrics.render(status(version=text)))
    assert ("semcache_info", frozenset({("version", text)})) in samples


def test_every_metric_is_documented_with_its_type() -> None:
    documented = dict(re.findall(r"^\| `(semcache_[a-z_]+)` \| (\w+) \|", DOCUMENT.read_text("utf-8"), re.MULTILINE))
    assert documented == {f"semcache_{metric.name}": metric.kind for metric in metrics.METRICS}


def test_names_are_unique_and_follow_the_conventions() -> None:
    names = [metric.name for metric in metrics.METRICS]
    assert len(set(names)) == len(names)
    for metric in metrics.METRICS:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert "\n" not in metric.help
