"""The shipped datasets keep their shape, and their held-out rows stay frozen."""

import hashlib
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

DATASETS = Path(__file__).resolve().parents[2] / "semcache" / "assets" / "datasets"
SPLITS = {"train", "held_out", "held_out_wording"}
HELD_OUT = {"held_out", "held_out_wording"}
NAMES = ("class", "support", "handbook")

# SHA-256 over the sorted JSON lines of the rows of both held-out splits. These rows are what a
# trained model is judged by: they are not changed after a training run has seen the train rows.
FROZEN = {
    "class": "a4b8f2473fc504427e8d3932931fd8d67656530b4b7dbf51d52a77b727c0251b",
    "support": "a15808be8eb2cd65e1e23fbffe76e39c50e4f67d8bb9b3da5931cfeac354771e",
    "handbook": "9ab934098f564586e639f19fe9a29c6db4c0a6b66aab5b3574e1b32a3c2ae3f6",
}


def load(name):
    return json.loads((DATASETS / f"{name}.json").read_text(encoding="utf-8"))


def words(text):
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def jaccard(a, b):
    a, b = words(a), words(b)
    return len(a & b) / len(a | b)


def by_group(rows):
    groups = defaultdict(list)
    for row in rows:
        groups[row["group"]].append(row)
    return groups


def held_out_digest(rows):
    lines = sorted(json.dumps(row, sort_keys=True, ensure_ascii=False) for row in rows if row["split"] in HELD_OUT)
    return hashlib.sha256("\n".join(lines).encode("utf-8")).hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_rows_have_the_schema(name):
    rows = load(name)
    fields = {"question", "answer", "group", "split"}
    if name != "support":
        fields = fields | {"context"}
    for row in rows:
        assert set(row) == fields, row
        for key, value in row.items():
            assert isinstance(value, str), (key, row)
            assert value, (key, row)
            assert value == value.strip(), (key, row)
        assert row["split"] in SPLITS
        assert re.fullmatch(name + r"/[a-z0-9-]+", row["group"])


@pytest.mark.parametrize("name", NAMES)
def test_file_has_one_row_per_line(name):
    lines = (DATASETS / f"{name}.json").read_text(encoding="utf-8").splitlines()
    assert (lines[0], lines[-1]) == ("[", "]")
    assert [json.loads(line.rstrip(",")) for line in lines[1:-1]] == load(name)


@pytest.mark.parametrize("name", NAMES)
def test_no_question_occurs_twice(name):
    # Neither literally nor up to case, punctuation and word order.
    seen = {}
    for row in load(name):
        key = tuple(sorted(re.findall(r"[a-z0-9]+", row["question"].lower())))
        assert key not in seen, (row["question"], seen.get(key))
        seen[key] = row["question"]


@pytest.mark.parametrize("name", NAMES)
def test_a_group_has_one_answer(name):
    for group, rows in by_group(load(name)).items():
        assert len({row["answer"] for row in rows}) == 1, group


@pytest.mark.parametrize("name", ["class", "handbook"])
def test_held_out_groups_are_never_trained(name):
    for group, rows in by_group(load(name)).items():
        splits = {row["split"] for row in rows}
        assert splits in ({"train"}, {"held_out"}, {"train", "held_out_wording"}), group


def test_class_counts_and_context():
    rows = load("class")
    assert len(rows) >= 150
    assert len({row["group"] for row in rows}) == len(rows)
    contexts = {row["context"] for row in rows}
    assert len(contexts) == 1
    context = contexts.pop()
    assert len(context.split()) >= 300
    labels = {row["answer"] for row in rows}
    for label in labels:
        assert re.fullmatch(r"[a-z]+", label)
        assert f"\n{label}: " in context, label
    for split, least in (("train", 10), ("held_out", 2)):
        for label in labels:
            texts = [r for r in rows if r["split"] == split and r["answer"] == label]
            assert len(texts) >= least, (split, label)
    assert sum(row["split"] == "train" for row in rows) >= 130
    assert sum(row["split"] == "held_out" for row in rows) >= 20


def test_class_texts_differ_clearly():
    rows = load("class")
    for i, a in enumerate(rows):
        for b in rows[:i]:
            assert jaccard(a["question"], b["question"]) <= 0.6, (a["question"], b["question"])


def test_support_counts_and_answers():
    groups = by_group(load("support"))
    assert len(groups) >= 80
    assert len({rows[0]["answer"] for rows in groups.values()}) == len(groups)
    for group, rows in groups.items():
        assert 25 <= len(rows[0]["answer"].split()) <= 70, group
        assert sum(row["split"] == "train" for row in rows) >= 5, group
        assert sum(row["split"] == "held_out_wording" for row in rows) >= 1, group


def test_support_held_out_wordings_are_far_from_the_trained_ones():
    nearest = []
    for rows in by_group(load("support")).values():
        trained = [row["question"] for row in rows if row["split"] == "train"]
        held_out = [row["question"] for row in rows if row["split"] in HELD_OUT]
        nearest += [max(jaccard(question, other) for other in trained) for question in held_out]
    assert max(nearest) < 1.0
    assert sum(nearest) / len(nearest) <= 0.6


def test_handbook_counts_and_context():
    rows = load("handbook")
    contexts = {row["context"] for row in rows}
    assert len(contexts) == 1
    assert len(contexts.pop().split()) >= 900
    assert len(rows) >= 60
    assert sum(row["split"] == "train" for row in rows) >= 60
    assert sum(row["split"] == "held_out" for row in rows) >= 6
    assert sum(row["split"] == "held_out_wording" for row in rows) >= 10
    for row in rows:
        assert 1 <= len(row["answer"].split()) <= 15, row["answer"]


def test_handbook_numbers_stand_in_the_document():
    for row in load("handbook"):
        numbers = set(re.findall(r"[0-9][0-9:,]*", row["answer"]))
        assert numbers <= set(re.findall(r"[0-9][0-9:,]*[0-9]|[0-9]", row["context"])), row


@pytest.mark.parametrize("name", NAMES)
def test_held_out_rows_are_frozen(name):
    assert held_out_digest(load(name)) == FROZEN[name]
