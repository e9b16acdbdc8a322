"""The HTTP documentation names every field that explanations, audits, feedback and other budgets are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from semcache import wire

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "http-api.md"


@pytest.mark.parametrize(
    "shape",
    [wire.CandidateRow, wire.ScopeEvidence, wire.Explanation, wire.AuditReport, wire.AuditRow, wire.TuneReport,
     wire.TuneRow, wire.FeedbackResult, wire.SemanticStatus, wire.PinResult, wire.Cleared],
    ids=lambda shape: shape.__name__,
)  # fmt: skip
def test_every_field_is_named(shape: type) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in shape.__annotations__ if f"`{name}`" not in text and f'"{name}"' not in text] == []


def test_every_schema_is_named() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for schema in (wire.EXPLAIN_SCHEMA, wire.AUDIT_SCHEMA, wire.TUNE_SCHEMA):
        assert f'"{schema}"' in text
