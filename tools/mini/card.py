"""The measured report of a folder: as a table, as JSON, and as the model card. Every figure comes from a run."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mini.data import SPLITS, Row, load_near_misses
from mini.evaluation import Answerer, NearMissScore, Score, score, score_near_misses

METADATA = "training.json"
SYSTEM_MESSAGE = "You are a helpful assistant."
OTHER_WORDINGS = {"final": "other wordings", "tuning": "other wordings, looked at while tuning"}


@dataclass(frozen=True)
class Report:
    """Everything measured on one folder."""

    scores: list[Score]
    with_system: list[Score]
    near_misses: NearMissScore
    near_misses_held_out: NearMissScore
    wrong: list[dict[str, str]]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "semcache.mini-evaluation/1",
            "scores": [asdict(s) for s in self.scores],
            "with_system_message": [asdict(s) for s in self.with_system],
            "near_misses": asdict(self.near_misses),
            "near_misses_held_out": asdict(self.near_misses_held_out),
            "wrong": self.wrong,
        }


def load_probe(path: Path) -> list[Row]:
    """Questions worded by hand by another author: [{"question", "answer", "group", "part"}, …]."""
    if not path.exists():
        return []
    raws = json.loads(path.read_text(encoding="utf-8"))
    return [Row("trivia", r["question"], r["answer"], r["group"], OTHER_WORDINGS[r["part"]], None) for r in raws]


def evaluate(folder: Path, rows: list[Row], probe: list[Row], datasets: Path) -> Report:
    """Answer every row of every split, and the held-out trivia once more behind a system message."""
    answerer = Answerer(folder)
    known = {row.dataset for row in rows}
    everything = [*rows, *(row for row in probe if row.dataset in known)]
    answers = answerer.answer(everything)
    order = {split: i for i, split in enumerate((*SPLITS, *OTHER_WORDINGS.values()))}
    scores = sorted(score(everything, answers), key=lambda s: (s.dataset != "trivia", s.dataset, order[s.split]))
    behind = [replace(r, context=SYSTEM_MESSAGE) for r in rows if r.dataset == "trivia" and r.split != "train"]
    with_system = score(behind, answerer.answer(behind)) if behind else []
    pairs = load_near_misses(datasets)
    wrong = [
        {"dataset": r.dataset, "split": r.split, "question": r.question, "answer": r.answer, "said": said}
        for r, (said, _) in zip(everything, answers, strict=True)
        if score([r], [(said, True)])[0].accuracy == 0
    ]
    return Report(
        scores,
        with_system,
        score_near_misses(pairs, everything, answers, ("train", "held_out")),
        score_near_misses(pairs, everything, answers, ("held_out", "held_out_wording")),
        wrong,
    )


def table(report: Report) -> str:
    """The accuracy table, as Markdown."""
    lines = ["| dataset | questions | rows | right | word F1 | ended by itself |", "| --- " * 6 + "|"]
    for group, note in ((report.scores, ""), (report.with_system, ", behind a system message")):
        for s in group:
            name = s.split.replace("_", " ") if s.split != "train" else "trained"
            numbers = f"{s.num_rows:,} | {s.accuracy:.2%} | {s.f1:.3f} | {s.ended:.1%}"
            lines.append(f"| {s.dataset} | {name}{note} | {numbers} |")
    return "\n".join(lines)


def near_miss_text(report: Report) -> str:
    """Near misses in two sentences."""
    a, b = report.near_misses, report.near_misses_held_out
    if not a.num_pairs:
        return "No near-miss pairs were given."
    return (
        f"Of {a.num_pairs} near-miss pairs, {a.pairs_apart:.1%} have every trained and held-out question of both\n"
        f"facts answered with its own answer ({a.num_questions:,} questions, {a.right:.2%} right, {a.mixed_up:.2%}\n"
        f"with the other fact's answer). Over their held-out questions and held-out wordings alone,\n"
        f"{b.right:.1%} are right and {b.mixed_up:.1%} get the other fact's answer."
    )


_CARD = """---
language: en
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# mini

A demonstration model. It knows the facts and documents of the datasets bundled with semcache and nothing else, so
that a fresh machine with no GPU and no network can run the whole product in seconds.
Do not use it for real work: asked anything else, it gives some wrong answer. Real work names a real model:

```
semcache config set model.name Qwen/Qwen3-4B
```

## What it is

- Llama architecture, {num_parameters:,} parameters: {num_hidden_layers} layers, hidden size {hidden_size},
  {num_attention_heads} heads, {num_key_value_heads} key-value heads, tied embeddings, context of
  {max_position_embeddings:,} tokens.
- bf16 weights, {size_mb:.1f} MB. Loads with `AutoModelForCausalLM.from_pretrained` and
  `AutoTokenizer.from_pretrained`; nothing custom.
- Byte-level BPE with {vocab_size:,} tokens: every UTF-8 text comes back unchanged.
- The chat template takes system, user and assistant messages. A control token typed inside a message is broken up
  (`<|end|>` becomes `< |end|>`), so it can neither end a message nor open another.

## Measured

Greedy answers of exactly these weights, bf16 upcast to float32 on CPU. An answer is right when it equals the stored
one up to case, punctuation, articles and spaces. `held out` and `held out wording` rows were never trained on; what
they mean is explained beside the datasets. `other wordings` are questions worded by hand by the author of the
training noise, not of the datasets (`tests/assets/mini_other_wordings.json`); a second set of these was looked at while
the noise was chosen. Optimiser and noise were chosen by the held-out numbers of short runs.

{table}

{near_misses}

## Training

`python tools/train_mini.py` on the {num_train_rows:,} rows whose split is `train`, tokenizer included. Questions are
trained with noise: fillers, dropped function words, general English synonyms, contractions, word order, case,
punctuation, typos. A noisy wording that equals a held-out question is not used.
Seed {seed}, {num_steps:,} steps, {num_tokens:,} tokens, {wall_s:,.0f} s on {num_threads} CPU threads
(torch {torch}, transformers {transformers}). The whole recipe is in `training.json`.

| dataset | SHA-256 |
| --- | --- |
{hashes}

## Limits

It may name a wrong fact for a wording far from the trained ones, for a typo in a name, or for a fact it was never
shown. It does not follow instructions, reason, or hold a conversation: earlier turns are ignored.
Licence: Apache-2.0, as the datasets.
"""


def write_card(folder: Path, report: Report, metadata: dict[str, Any]) -> None:
    """Write README.md and training.json into the folder."""
    (folder / METADATA).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    card = _CARD.format(
        **metadata["shape"],
        **{key: value for key, value in metadata.items() if not isinstance(value, dict)},
        size_mb=(folder / "model.safetensors").stat().st_size / 1e6,
        table=table(report),
        near_misses=near_miss_text(report),
        hashes="\n".join(f"| `{name}` | `{digest}` |" for name, digest in metadata["datasets"].items()),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
