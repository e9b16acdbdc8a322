"""Whether two answers to two wordings say the same. What cannot be decided is no label: other words are not wrong.

Two of the three functions of `semantic.equivalence` decide here; `judge` asks the model about what `text` leaves open,
in idle time (daemon/audits.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from semcache.daemon.cache.embedder import Embedder
from semcache.daemon.cache.features import contradicts, words

Equivalence = Callable[[str, str], bool | None]

# Answers nearer than the first are taken as one, farther than the second as two; in between nobody knows.
SAME_COSINE = 0.97
OTHER_COSINE = 0.5

_SHORT_WORDS = 4
_FILLER = set("a an the is are was were it its this that of in on at to and".split())
_JUDGE = re.compile(r"\s*\W*(yes|no)\b", re.IGNORECASE)


def text_equivalence(a: str, b: str) -> bool | None:
    """Equal but for spaces and the final stop: the same. Another number, negation or name: other.

    Two short answers without a common word are other, too: "Paris" and "London". That takes "yes" and "certainly" for
    two answers, an error on the careful side.
    """
    if normalised(a) == normalised(b):
        return True
    if contradicts(a, b):
        return False
    content_a, content_b = _content(a), _content(b)
    is_short = 0 < len(content_a) <= _SHORT_WORDS and 0 < len(content_b) <= _SHORT_WORDS
    return False if is_short and not content_a & content_b else None


def embedding_equivalence(embedder: Callable[[], Embedder | None]) -> Equivalence:
    """What the text leaves open is decided by the answers' embeddings, where they are clearly near or far."""

    def equivalent(a: str, b: str) -> bool | None:
        decided = text_equivalence(a, b)
        model = embedder()
        if decided is not None or model is None:
            return decided
        if max(model.num_tokens(a), model.num_tokens(b)) > model.max_tokens:
            return None
        cosine = float(model.embed(a) @ model.embed(b))
        return True if cosine >= SAME_COSINE else False if cosine < OTHER_COSINE else None

    return equivalent


def make_equivalence(name: str, embedder: Callable[[], Embedder | None]) -> Equivalence:
    """The function of `semantic.equivalence`; the config has checked the name."""
    return embedding_equivalence(embedder) if name == "embedding" else text_equivalence


def judge_prompt(question: str, a: str, b: str) -> str:
    """What the model is asked about two answers that the text leaves open."""
    return (
        f"Question: {question}\n\nAnswer 1: {a}\n\nAnswer 2: {b}\n\n"
        "Do both answers state the same facts, so that either could stand for the other? Reply with yes or no only."
    )


def read_judgement(reply: str) -> bool | None:
    """The judge's word; a reply that does not begin with it is no label."""
    found = _JUDGE.match(reply)
    return found.group(1).lower() == "yes" if found is not None else None


def normalised(text: str) -> str:
    """Case and symbols stay: they mean something in code, formulas and names."""
    return " ".join(text.split()).rstrip(".")


def _content(text: str) -> set[str]:
    return set(words(text.lower())) - _FILLER
