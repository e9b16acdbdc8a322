"""An answer row with every field filled, for tests that need any."""

from __future__ import annotations

from typing import Any

from semcache.store.entries import Entry


def an_entry(**changed: Any) -> Entry:
    values: dict[str, Any] = {
        "id": "e_1", "scope": "user:os:1", "model": "mini", "fingerprint": "f", "user": "os:1", "strategy": "per_user",
        "context_key": "c", "params_key": "p", "request_key": "k", "prompt": "Hi?", "messages": (("user", "Hi?"),),
        "sampling": {}, "answer": "Hello", "answer_tokens": (1, 2), "finish_reason": "stop", "num_prompt_tokens": 3,
        "num_completion_tokens": 2, "created_at": 100.0, "last_used_at": 100.0,
    }  # fmt: skip
    return Entry(**values | changed)
