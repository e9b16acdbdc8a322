"""The HTTP documentation names every field that explanations, audits, feedback and other budgets are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from semcache.wire import entries, receipts, status, trust

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "http-api.md"


@pytest.mark.parametrize(
    "shape",
    [receipts.CandidateRow, trust.ScopeEvidence, trust.Explanation, trust.AuditReport, trust.AuditRow, trust.TuneReport,
     trust.TuneRow, trust.FeedbackResult, status.SemanticStatus, entries.PinResult, entries.Cleared],
    ids=lambda shape: shape.__name__,
)  # fmt: skip
def test_every_field_is_named(shape: type) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in shape.__annotations__ if f"`{name}`" not in text and f'"{name}"' not in text] == []


def test_every_schema_is_named() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for schema in (trust.EXPLAIN_SCHEMA, trust.AUDIT_SCHEMA, trust.TUNE_SCHEMA):
        assert f'"{schema}"' in text
