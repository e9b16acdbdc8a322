"""What the command line of the tool starts: a training run with its measurement, or a measurement alone."""

import contextlib
import dataclasses
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from mini.augment import bare, sample_texts
from mini.card import evaluate, load_probe, near_miss_text, table, write_card
from mini.data import Row, by_context, dataset_hashes, load_rows, train_rows
from mini.model import build_config, save_model
from mini.recipe import Recipe
from mini.tokenizer import ChatEncoder, save_tokenizer, train_tokenizer
from mini.training import train

PROBE = Path(__file__).resolve().parents[2] / "tests" / "assets" / "mini_other_wordings.json"
VOCAB_SIZE = 4096
CONTEXT_COPIES = 12  # a shared context is one text among thousands; its words should still get tokens of their own
MAX_BYTES = 16_000_000


def set_up(num_threads: int) -> None:
    """For the whole process: no more threads than these, no progress bars."""
    torch.set_num_threads(num_threads)
    with contextlib.suppress(AttributeError):
        transformers.utils.logging.disable_progress_bar()


def log(text: str) -> None:
    """Progress goes to stderr; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def tokenizer_texts(rows: Sequence[Row], seed: int) -> list[str]:
    """What the tokenizer's statistics come from: train rows, with and without noise."""
    questions = [row.question for row in rows]
    contexts = [context for context in by_context(rows) if context is not None]
    noisy = sample_texts(questions, random.Random(seed), copies=2)
    return [*noisy, *(row.answer for row in rows), *(contexts * CONTEXT_COPIES)]


def run_training(out: Path, datasets: Path, recipe: Recipe, seed: int, quick: bool) -> None:
    """Tokenizer, weights, measurement, card: everything the folder holds."""
    started = time.perf_counter()
    rows, probe = load_rows(datasets), load_probe(PROBE)
    trained_on = train_rows(rows)
    tokenizer = train_tokenizer(tokenizer_texts(trained_on, seed), VOCAB_SIZE)
    encoder = ChatEncoder(tokenizer)
    config = build_config(tokenizer.get_vocab_size(), encoder)
    held_out = frozenset(bare(row.question) for row in [*rows, *probe] if row.split != "train")
    log(f"{len(trained_on):,} train rows, {config.vocab_size:,} tokens in the vocabulary, {recipe.num_steps:,} steps")
    result = train(trained_on, encoder, config, recipe, forbidden=held_out, seed=seed, log=log)
    out.mkdir(parents=True, exist_ok=True)
    num_parameters = save_model(result.weights, config, out)
    save_tokenizer(tokenizer, out)
    size = (out / "model.safetensors").stat().st_size
    if size > MAX_BYTES:
        raise RuntimeError(f"model.safetensors has {size:,} bytes, more than the {MAX_BYTES:,} the package allows")
    log("measuring")
    sample = random.Random(seed).sample(rows, min(len(rows), 40)) if quick else rows
    report = evaluate(out, sample, [] if quick else probe, datasets)
    shape = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    metadata: dict[str, Any] = {
        "schema": "semcache.mini-training/1",
        "seed": seed,
        "num_steps": recipe.num_steps,
        "num_tokens": result.num_tokens,
        "wall_s": round(result.wall_s, 1),
        "num_threads": recipe.num_threads,
        "num_train_rows": len(trained_on),
        "num_parameters": num_parameters,
        "shape": {k: getattr(config, k) for k in (*shape, "intermediate_size", "max_position_embeddings")},
        "recipe": dataclasses.asdict(recipe),
        "datasets": dataset_hashes(datasets),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    write_card(out, report, metadata)
    print(table(report))
    print(near_miss_text(report))
    spent = time.perf_counter() - started
    log(f"{num_parameters:,} parameters, {size / 1e6:.1f} MB, {spent:.0f} s in all; wrote {out}")


def run_evaluation(folder: Path, datasets: Path, as_json: bool) -> None:
    """Print the accuracy of a folder."""
    report = evaluate(folder, load_rows(datasets), load_probe(PROBE), datasets)
    if as_json:
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        print(f"{table(report)}\n\n{near_miss_text(report)}")
