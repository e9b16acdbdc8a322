"""Greedy answers of a saved folder and how many are right: loaded as the daemon loads it, bf16 weights in float32."""

import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mini.data import NearMiss, Row, by_context
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Case, punctuation, articles and spaces do not count."""
    return " ".join(_ARTICLES.sub(" ", text.casefold().translate(_PUNCTUATION)).split())


def token_f1(said: str, wanted: str) -> float:
    """Overlap of words, order aside."""
    a, b = normalise(said).split(), normalise(wanted).split()
    shared = sum((Counter(a) & Counter(b)).values())
    return 2 * shared / (len(a) + len(b)) if shared else float(a == b)


@dataclass(frozen=True)
class Score:
    """One line of the accuracy table."""

    dataset: str
    split: str
    num_rows: int
    accuracy: float
    f1: float
    ended: float  # share of answers that stop by themselves


class Answerer:
    """Answers rows in batches. Rows with one system message share its computation."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.end: int = self.tokenizer.eos_token_id
        self.pad: int = self.tokenizer.pad_token_id

    def _ids(self, messages: list[dict[str, str]], prompt: bool) -> list[int]:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def answer(self, rows: Sequence[Row], batch_rows: int = 256, max_new_tokens: int = 120) -> list[tuple[str, bool]]:
        """(answer, did it end by itself) for every row, in order."""
        answers: dict[int, tuple[str, bool]] = {}
        index = {id(row): i for i, row in enumerate(rows)}
        for context, group in by_context(rows).items():
            system = [] if context is None else [{"role": "system", "content": context}]
            shared = self._ids(system, False) if system else []
            asked = [[*system, {"role": "user", "content": row.question}] for row in group]
            prompts = [self._ids(messages, True)[len(shared) :] for messages in asked]
            order = sorted(range(len(group)), key=lambda i: len(prompts[i]))
            size = batch_rows if not shared else 48
            for at in range(0, len(order), size):
                chosen = order[at : at + size]
                said = self._generate(shared, [prompts[i] for i in chosen], max_new_tokens)
                for i, ids in zip(chosen, said, strict=True):
                    ended = bool(ids) and ids[-1] == self.end
                    text = self.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False)
                    answers[index[id(group[i])]] = (text, ended)
        return [answers[i] for i in range(len(rows))]

    @torch.inference_mode()
    def _generate(self, shared: list[int], prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        """Greedy decoding behind a shared prefix; finished rows leave the batch."""
        length = max(len(p) for p in prompts)
        ids = torch.full((len(prompts), length), self.pad)
        mask = torch.zeros(len(prompts), len(shared) + length, dtype=torch.long)
        mask[:, : len(shared)] = 1
        for i, prompt in enumerate(prompts):
            ids[i, length - len(prompt) :] = torch.tensor(prompt)
            mask[i, len(shared) + length - len(prompt) :] = 1
        cache = DynamicCache()
        if shared:
            self.model(input_ids=torch.tensor([shared]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(len(prompts))
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, len(shared) :]
        said: list[list[int]] = [[] for _ in prompts]
        alive = list(range(len(prompts)))
        for _ in range(max_new_tokens):
            out = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            chosen = out.logits[:, -1].argmax(dim=-1)
            for i, token in zip(alive, chosen.tolist(), strict=True):
                said[i].append(token)
            keep = chosen != self.end
            if not bool(keep.any()):
                break
            if not bool(keep.all()):
                cache.batch_select_indices(keep.nonzero().flatten())
            alive = [i for i, kept in zip(alive, keep.tolist(), strict=True) if kept]
            ids, mask, positions = chosen[keep][:, None], _grow(mask[keep]), positions[keep][:, -1:] + 1
        return said


def _grow(mask: Tensor) -> Tensor:
    return torch.cat([mask, torch.ones(mask.shape[0], 1, dtype=mask.dtype)], dim=1)


def score(rows: Sequence[Row], answers: Sequence[tuple[str, bool]]) -> list[Score]:
    """Accuracy for every dataset and split."""
    grouped: defaultdict[tuple[str, str], list[tuple[Row, str, bool]]] = defaultdict(list)
    for row, (said, ended) in zip(rows, answers, strict=True):
        grouped[row.dataset, row.split].append((row, said, ended))
    return [
        Score(
            dataset,
            split,
            len(found),
            sum(normalise(said) == normalise(row.answer) for row, said, _ in found) / len(found),
            sum(token_f1(said, row.answer) for row, said, _ in found) / len(found),
            sum(ended for _, _, ended in found) / len(found),
        )
        for (dataset, split), found in grouped.items()
    ]


@dataclass(frozen=True)
class NearMissScore:
    """How well look-alike questions are told apart, over trained and held-out questions of both groups."""

    num_pairs: int
    pairs_apart: float  # share of pairs with every question answered with its own answer
    num_questions: int
    right: float  # share of questions with their own answer
    mixed_up: float  # share of questions with the other group's answer


def score_near_misses(
    pairs: Iterable[NearMiss], rows: Sequence[Row], answers: Sequence[tuple[str, bool]], splits: Sequence[str]
) -> NearMissScore:
    """Near misses over the questions of `splits`."""
    said: defaultdict[str, list[str]] = defaultdict(list)
    wanted: dict[str, str] = {}
    for row, (text, _) in zip(rows, answers, strict=True):
        if row.split in splits:
            said[row.group].append(normalise(text))
            wanted[row.group] = normalise(row.answer)
    apart = num_pairs = num_questions = right = mixed = 0
    for pair in pairs:
        if pair.a not in wanted or pair.b not in wanted:
            continue
        num_pairs += 1
        wrong = 0
        for own, other in ((pair.a, pair.b), (pair.b, pair.a)):
            num_questions += len(said[own])
            ok = sum(text == wanted[own] for text in said[own])
            right += ok
            wrong += len(said[own]) - ok
            mixed += sum(text == wanted[other] != wanted[own] for text in said[own])
        apart += wrong == 0
    per_pair, per_question = 1 / max(1, num_pairs), 1 / max(1, num_questions)
    return NearMissScore(num_pairs, apart * per_pair, num_questions, right * per_question, mixed * per_question)
