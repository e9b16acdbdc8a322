"""Fit the prior that every scope of the `verified` policy starts with, from labelled questions.

python -m tools.fit_prior --questions FILE.jsonl[.gz]            # fit, print held-out figures, write prior.json
python -m tools.fit_prior --questions FILE.jsonl[.gz] --check    # the same, and write nothing

Rows are {"question", "class_id"}; questions of one class mean the same. The classes are split in two: the fit sees one
part, the figures come from the other. Labels are taken as the policy meets them: of the likeliest of the five nearest
neighbours among what was asked before, in streams of random order.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from benchmarks.embeddings import default_cache_dir, embed_all
from benchmarks.semantic_trace.trace import Question, read_questions, sample
from semcache.daemon.cache.features import FEATURES, in_order, measure
from semcache.daemon.cache.prior import PATH

Array = NDArray[np.float64]

NUM_NEIGHBOURS = 5
MULTI_SHARE = 0.7
# Which way a feature may speak; what is not named is free.
FOR = frozenset({"margin", "agreement", "overlap", "trigrams"})
AGAINST = frozenset({"distance", "function", "question", "number", "negation", "entity", "scale", "order"})
UNKNOWN = frozenset({"regret", "regret_known"})  # no model here: they start at 0 and learn
# A telling difference costs at least this much log-odds: people label questions with other numbers as the same more
# often than a cache should serve them. A scope may learn otherwise.
AT_LEAST = dict.fromkeys(("number", "negation", "scale", "order"), 0.5)
RIDGE = 20.0
# How far a scope's weights may be from the prior's, squared, on the features' scales.
VARIANCE, CONSTANT_VARIANCE, UNKNOWN_VARIANCE = 0.05, 1.0, 0.25
ERRORS = (0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.045)


@dataclass(frozen=True)
class Labels:
    """Neighbours of a stream: features [num, 5, d], whether each is right [num, 5], cosines [num, 5]."""

    features: Array
    same: NDArray[np.bool_]
    cosines: Array


def collect(stream: Sequence[Question], vectors: NDArray[np.float32]) -> Labels:
    """The nearest neighbours of every question among those before it."""
    features, same, cosines = [], [], []
    for at in range(NUM_NEIGHBOURS, len(stream)):
        scores = vectors[:at] @ vectors[at]
        near = np.argpartition(-scores, NUM_NEIGHBOURS - 1)[:NUM_NEIGHBOURS]
        near = near[np.argsort(-scores[near], kind="stable")]
        found = [(stream[i].text, stream[i].class_id, float(scores[i])) for i in near.tolist()]
        measured = measure(stream[at].text, found, [None] * NUM_NEIGHBOURS)
        features.append([in_order(row) for row in measured])
        same.append([answer == stream[at].class_id for _, answer, _ in found])
        cosines.append([score for _, _, score in found])
    return Labels(np.array(features), np.array(same), np.array(cosines))


def fit(features: Array, same: NDArray[np.bool_], scales: Array) -> Array:
    """A constant and the weights that explain the labels best, each on its side of 0."""

    def loss(weights: Array) -> tuple[float, Array]:
        odds = weights[0] + features @ weights[1:]
        value = float(np.sum(np.logaddexp(0, odds) - same * odds) + RIDGE / 2 * weights[1:] @ weights[1:])
        off = 1 / (1 + np.exp(-odds)) - same
        return value, np.concatenate([[off.sum()], features.T @ off + RIDGE * weights[1:]])

    bounds: list[tuple[float | None, float | None]] = [(None, None)]
    for name, scale in zip(FEATURES, scales.tolist(), strict=True):
        low = 0.0 if name in FOR | UNKNOWN else None
        bounds.append((low, -AT_LEAST.get(name, 0.0) * scale if name in AGAINST | UNKNOWN else None))
    found = minimize(loss, np.zeros(len(bounds)), jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 2000})
    weights: Array = found.x
    return weights


def likeliest(chances: Array) -> NDArray[np.intp]:
    found: NDArray[np.intp] = np.argmax(chances, axis=1)
    return found


def fit_prior(labels: Sequence[Labels]) -> dict[str, Any]:
    """The prior as JSON: first over all neighbours, then over the likeliest one of each request."""
    features = np.concatenate([item.features for item in labels])
    same = np.concatenate([item.same for item in labels])
    flat = features.reshape(-1, len(FEATURES))
    centres, scales = flat.mean(axis=0), flat.std(axis=0)
    centres[[name in UNKNOWN for name in FEATURES]] = 0.0
    scales[scales < 1e-6] = 1.0
    standard = (features - centres) / scales
    first = fit(standard.reshape(-1, len(FEATURES)), same.reshape(-1), scales)
    rows = np.arange(len(standard)), likeliest(first[0] + standard @ first[1:])
    weights = fit(standard[rows], same[rows], scales)
    return {
        "constant": {"weight": round(float(weights[0]), 4), "variance": CONSTANT_VARIANCE},
        "features": {
            name: {
                "weight": round(float(weights[1 + i]), 4),
                "centre": round(float(centres[i]), 4),
                "scale": round(float(scales[i]), 4),
                "variance": UNKNOWN_VARIANCE if name in UNKNOWN else VARIANCE,
            }
            for i, name in enumerate(FEATURES)
        },
    }


def log_odds(prior: dict[str, Any], features: Array) -> Array:
    rows = [prior["features"][name] for name in FEATURES]
    weights, centres, scales = (np.array([row[key] for row in rows]) for key in ("weight", "centre", "scale"))
    odds: Array = prior["constant"]["weight"] + ((features - centres) / scales) @ weights
    return odds


def hits_at(score: Array, same: NDArray[np.bool_]) -> list[float]:
    """The share served by the best threshold on `score` for each of ERRORS wrong answers per request."""
    rows = np.arange(len(score)), likeliest(score)
    order = np.argsort(-score[rows], kind="stable")
    wrong = np.cumsum(~same[rows][order])
    return [float(np.searchsorted(wrong, error * len(score), side="right")) / len(score) for error in ERRORS]


def report(prior: dict[str, Any], held_out: Sequence[Labels]) -> dict[str, Any]:
    """Log-loss, AUC and hits at equal error of the prior and of the cosine alone, on classes that the fit never saw."""
    ours = [hits_at(log_odds(prior, item.features), item.same) for item in held_out]
    cosine = [hits_at(item.cosines, item.same) for item in held_out]
    odds = np.concatenate([log_odds(prior, item.features).max(axis=1) for item in held_out])
    rows = [(item.same[np.arange(len(item.same)), likeliest(log_odds(prior, item.features))]) for item in held_out]
    same = np.concatenate(rows)
    ranks = np.empty(len(odds))
    ranks[np.argsort(odds, kind="stable")] = np.arange(1, len(odds) + 1)
    num_same = int(same.sum())
    auc = (ranks[same].sum() - num_same * (num_same + 1) / 2) / max(1, num_same * (len(odds) - num_same))
    return {
        "log_loss": round(float(np.mean(np.logaddexp(0, odds) - same * odds)), 4),
        "auc": round(float(auc), 4),
        "errors": list(ERRORS),
        "hits": [round(value, 4) for value in np.mean(ours, axis=0).tolist()],
        "hits_of_cosine": [round(value, 4) for value in np.mean(cosine, axis=0).tolist()],
    }


def is_held_out(question: Question) -> bool:
    """Half of the classes, by their names alone."""
    return hashlib.sha256(question.class_id.encode()).digest()[0] % 2 == 0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=10_000, help="questions of a stream")
    parser.add_argument("--streams", type=int, default=2, help="streams to fit, and as many to judge")
    parser.add_argument("--cache-dir", type=Path, default=default_cache_dir(), help="where embeddings are kept")
    parser.add_argument("--out", type=Path, default=PATH)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)

    questions = read_questions(options.questions)
    parts = [[q for q in questions if is_held_out(q) == flag] for flag in (False, True)]
    streams = [[sample(part, options.limit, MULTI_SHARE, seed) for seed in range(options.streams)] for part in parts]
    texts = sorted({question.text for part in streams for stream in part for question in stream})
    row_of = {text: i for i, text in enumerate(texts)}
    vectors = embed_all(texts, options.cache_dir)
    fitted, held_out = (
        [collect(stream, vectors[[row_of[question.text] for question in stream]]) for stream in part]
        for part in streams
    )
    prior = fit_prior(fitted)
    found = report(prior, held_out)
    prior["trained_on"] = {
        "file": options.questions.name,
        "sha256": hashlib.sha256(options.questions.read_bytes()).hexdigest(),
        "labels": sum(len(item.same) for item in fitted),
        "held_out": found,
    }
    print_report(prior, found)
    if not options.check:
        options.out.write_text(json.dumps(prior, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {options.out}", file=sys.stderr)


def print_report(prior: dict[str, Any], found: dict[str, Any]) -> None:
    print("feature        weight (a standard deviation)")
    for name, row in prior["features"].items():
        print(f"{name:<14} {row['weight']:+.3f}")
    print(f"\nclasses that the fit never saw: log-loss {found['log_loss']:.4f}, AUC {found['auc']:.4f}")
    print("wrong per request   served by the prior   by the cosine alone")
    for error, ours, cosine in zip(found["errors"], found["hits"], found["hits_of_cosine"], strict=True):
        print(f"{error:>16.1%} {ours:>20.2%} {cosine:>20.2%}")


if __name__ == "__main__":
    main()
