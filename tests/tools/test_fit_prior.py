"""The prior's fit: on the right side of 0, better than the cosine where wording tells more, and deterministic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from semcache.daemon.cache.features import FEATURES
from semcache.daemon.cache.prior import read_prior
from tools import fit_prior
from tools.fit_prior import Labels, hits_at, report

NAMES = list(FEATURES)


def made_up(seed: int, num: int = 1500) -> Labels:
    """Answers are right where much of the wording is shared; the cosine says half of it."""
    draw = np.random.default_rng(seed)
    overlap = draw.random((num, 5))
    cosines = 0.5 * overlap + 0.4 * draw.random((num, 5))
    features = np.zeros((num, 5, len(NAMES)))
    features[..., NAMES.index("overlap")] = overlap
    features[..., NAMES.index("distance")] = np.log(1.005 - cosines)
    return Labels(features, draw.random((num, 5)) < 1 / (1 + np.exp(-12 * (overlap - 0.8))), cosines)


def test_what_tells_gets_the_weight_and_the_held_out_figures_show_it() -> None:
    prior = fit_prior.fit_prior([made_up(1)])
    weights = {name: row["weight"] for name, row in prior["features"].items()}
    assert weights["overlap"] > 1
    assert weights["regret"] == weights["regret_known"] == 0
    assert weights["number"] < 0
    found = report(prior, [made_up(2)])
    assert found["auc"] > 0.8
    assert sum(found["hits"]) > 1.1 * sum(found["hits_of_cosine"])
    assert fit_prior.fit_prior([made_up(1)]) == prior
    read_prior(prior)


def test_hits_at_counts_up_to_the_error() -> None:
    score = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    same = np.array([[True, False], [True, False], [False, True]])
    assert hits_at(score, same) == pytest.approx([2 / 3] * len(fit_prior.ERRORS))


def test_a_whole_run_on_a_small_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    topics = "rain snow hail wind fog frost thunder mist dew sleet drizzle cloud storm ice sun heat".split()
    rows = [
        {"question": f"{start} {topic} {'abcdefgh'[i]}?", "class_id": f"{topic}{i}"}
        for topic in topics
        for i in range(8)
        for start in ("what is", "define", "tell me about")
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    centres = {row["class_id"]: draw.normal(size=16) for row in rows}
    of = {row["question"]: row["class_id"] for row in rows}

    def embed(texts: list[str], cache_dir: Path) -> np.ndarray:
        vectors = np.stack([centres[of[text]] + 0.3 * draw.normal(size=16) for text in texts])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    monkeypatch.setattr(fit_prior, "embed_all", embed)
    out = tmp_path / "prior.json"
    fit_prior.main(["--questions", str(path), "--limit", "150", "--out", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    read_prior(found)
    assert found["trained_on"]["file"] == "questions.jsonl"
