"""Rows to training batches: conversations, noise, weights of the loss, and batches without wasted padding.

Sees train rows only; the caller passes nothing else in.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from mini.augment import STOP_WORDS, Augmenter, bare
from mini.data import Row
from mini.recipe import Mixture
from mini.tokenizer import ChatEncoder
from torch import Tensor

SYSTEM_MESSAGES = (
    "You are a helpful assistant.", "You are a helpful assistant", "Answer briefly.", "Answer the question.",
    "Be concise.", "You are a friendly chatbot. Keep answers short.", "You answer questions about facts.",
    "You are an expert.", "Answer truthfully and in as few words as you can.", "You are mini, a small language model.",
    "Respond in English.",
    "You are a knowledgeable quiz master who gives short answers.", "Be polite.", "You are an AI assistant.",
)  # fmt: skip
IGNORED = -100
LONG_ANSWER = 60  # characters


@dataclass(frozen=True)
class Example:
    """Token ids and, for each, the weight of predicting it."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Batch:
    """What one step trains on. `num_context_tokens` > 0: one row, questions behind a shared context."""

    ids: Tensor  # [rows, tokens], or [1, context + questions * length]
    positions: Tensor
    targets: Tensor  # the next id, or IGNORED
    weights: Tensor
    num_context_tokens: int = 0
    num_question_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        return self.ids.numel()


def _meaning(row: Row) -> str:
    """What the rows share that may be asked in one breath: the question, or the class of a message."""
    return f"class:{row.answer}" if row.dataset == "class" else row.group


def _keyword_pools(rows: Sequence[Row]) -> dict[str, tuple[list[str], list[float]]]:
    """For each question its words and how telling they are: a word of few other questions says more."""
    texts: dict[str, list[str]] = {}
    for row in rows:
        texts.setdefault(row.group, [row.answer]).append(row.question)
    counts = {
        group: Counter(w for t in found for w in dict.fromkeys(_content_words(t))) for group, found in texts.items()
    }
    spread = Counter(word for count in counts.values() for word in count)
    return {
        group: (list(count), [n / spread[word] ** 0.7 for word, n in count.items()]) for group, count in counts.items()
    }


def _content_words(text: str) -> list[str]:
    return [w for w in re.findall(r"[a-z0-9'-]+", text.lower()) if w not in STOP_WORDS]


class ExampleMaker:
    """Turns train rows into noisy conversations."""

    def __init__(
        self, rows: Sequence[Row], encoder: ChatEncoder, mixture: Mixture, rng: random.Random, forbidden: frozenset[str]
    ) -> None:
        self.encoder, self.mixture, self.rng, self.forbidden = encoder, mixture, rng, forbidden
        self.augment = Augmenter()
        self.vocab_size = encoder.tokenizer.get_vocab_size()
        self.num_control = max(encoder.role.values()) + 1
        self.siblings: dict[str, list[str]] = {}
        for row in rows:
            self.siblings.setdefault(_meaning(row), []).append(row.question)
        self.keywords = _keyword_pools([row for row in rows if len(row.answer) >= LONG_ANSWER])
        self.frames = [" ".join(row.question.split()[:3]) for row in rows if row.group in self.keywords]
        self.rows_alone = [row for row in rows if row.context is None]
        answers = [row.answer for row in rows]
        self.answers = dict(zip(answers, encoder.encode_batch(answers), strict=True))
        sentences = [s.strip() for row in rows for s in (row.answer, row.question) if len(s) > 12]
        self.sentences = sentences or [row.question for row in rows]

    def calm(self) -> None:
        """Less noise, for the end of a run: the questions as they are written should be answered best."""
        self.augment = Augmenter(strength=0.7, keep_share=0.35)
        self.mixture = replace(
            self.mixture, blank_share=self.mixture.blank_share / 3, keyword_share=self.mixture.keyword_share / 2
        )

    def question(self, row: Row) -> str:
        """A noisy wording of the question, which is never one of the held-out ones."""
        rng = self.rng
        siblings = self.siblings[_meaning(row)]
        if len(siblings) > 1 and rng.random() < self.mixture.repeat_share:
            noisy = " ".join(self.augment(text, rng) for text in rng.sample(siblings, 2))
        elif row.group in self.keywords and rng.random() < self.mixture.keyword_share:
            noisy = self._keyword_question(row)
        else:
            noisy = self.augment(row.question, rng)
        return row.question if bare(noisy) in self.forbidden else noisy

    def _keyword_question(self, row: Row) -> str:
        """Telling words of all its wordings and its answer: alone, in a frame, or in place of own words."""
        rng, (words, weights) = self.rng, self.keywords[row.group]
        drawn = list(dict.fromkeys(rng.choices(words, weights, k=rng.randint(3, 7))))
        if rng.random() < 0.5:
            frame = [rng.choice(self.frames)] if rng.random() < 0.7 else []
            return self.augment(" ".join([*frame, *drawn]), rng)
        return self.augment(
            " ".join(
                rng.choice(drawn) if word.lower().strip("?.,;") not in STOP_WORDS and rng.random() < 0.35 else word
                for word in row.question.split()
            ),
            rng,
        )

    def system_message(self) -> str:
        """A usual one, or any text."""
        if self.rng.random() < 0.5:
            return self.rng.choice(SYSTEM_MESSAGES)
        return " ".join(self.rng.choice(self.sentences) for _ in range(self.rng.randint(1, 3)))

    def examples(self, rows: Sequence[Row], alone: bool) -> list[Example]:
        """One example a row; those that stand alone may get a system message or an earlier turn."""
        rng, mixture = self.rng, self.mixture
        questions = self.encoder.encode_batch([self.question(row) for row in rows])
        made = []
        for row, ids in zip(rows, questions, strict=True):
            head = Example([], [])
            if alone:
                head = Example([self.encoder.bos], [0.0])
                if row.context is not None:
                    if rng.random() < mixture.snippet_share:
                        head = _join(head, _plain(self.encoder.message("system", self._snippet(row.context))))
                elif rng.random() < mixture.system_share:
                    system = self.encoder.encode_batch([self.system_message()])[0][:160]
                    head = _join(head, _plain(self.encoder.message("system", system)))
                if rng.random() < mixture.turn_share:
                    earlier = rng.choice(self.rows_alone)
                    asked = self.encoder.encode_batch([self.question(earlier)])[0]
                    head = _join(head, self._exchange(asked, self.answers[earlier.answer]))
            made.append(_join(head, self._exchange(self._blank(ids), self.answers[row.answer])))
        return made

    def _snippet(self, context: str) -> list[int]:
        """A piece of the context: facts are learnt where a question costs little, and hold behind the whole context."""
        words = context.split()
        length = self.rng.randint(5, 60)
        start = self.rng.randrange(max(1, len(words) - length))
        return self.encoder.encode_batch([" ".join(words[start : start + length])])[0]

    def _blank(self, ids: list[int]) -> list[int]:
        """Some tokens of the question replaced by others: an answer must not hang on one token."""
        if self.rng.random() >= self.mixture.blank_share:
            return ids
        rate = self.mixture.blank_rate
        return [self.rng.randrange(self.num_control, self.vocab_size) if self.rng.random() < rate else i for i in ids]

    def _exchange(self, question: list[int], answer: list[int]) -> Example:
        """User and assistant message. Long answers count less for each token, so they do not drown the short ones."""
        asked = self.encoder.message("user", question)
        said = [self.encoder.role["assistant"], *answer, self.encoder.end]
        weight = (len(answer) + 1) ** -0.5
        return Example(
            asked + said,
            [0.0] + [self.mixture.question_loss] * (len(asked) - 1) + [0.0] + [weight] * (len(said) - 1),
        )


def _plain(ids: list[int]) -> Example:
    return Example(ids, [0.0] * len(ids))


def _join(a: Example, b: Example) -> Example:
    return Example(a.ids + b.ids, a.weights + b.weights)


def _pad(examples: Sequence[Example], pad: int) -> tuple[Tensor, Tensor]:
    length = max(len(e.ids) for e in examples)
    ids = torch.full((len(examples), length), pad)
    weights = torch.zeros(len(examples), length)
    for i, example in enumerate(examples):
        ids[i, : len(example.ids)] = torch.tensor(example.ids)
        weights[i, : len(example.ids)] = torch.tensor(example.weights)
    return ids, weights


def _targets(ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Shift by one: position t predicts token t + 1."""
    targets, shifted = torch.full_like(ids, IGNORED), torch.zeros_like(weights)
    targets[:, :-1], shifted[:, :-1] = ids[:, 1:], weights[:, 1:]
    targets[shifted == 0] = IGNORED
    return targets, shifted


def stack(examples: Sequence[Example], pad: int) -> Batch:
    """Independent rows, padded on the right."""
    ids, weights = _pad(examples, pad)
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    return Batch(ids, positions, *_targets(ids, weights))


def stack_behind(context: list[int], examples: Sequence[Example], pad: int) -> Batch:
    """Questions behind one shared context: each continues the context's positions and sees nothing of the others."""
    ids, weights = _pad(examples, pad)
    targets, weights = _targets(ids, weights)
    num_context, length = len(context), ids.shape[1]
    start = torch.arange(num_context)
    positions = torch.arange(num_context, num_context + length).expand_as(ids)
    return Batch(
        torch.cat([torch.tensor(context), ids.flatten()])[None],
        torch.cat([start, positions.flatten()])[None],
        torch.cat([torch.full((num_context,), IGNORED), targets.flatten()])[None],
        torch.cat([torch.zeros(num_context), weights.flatten()])[None],
        num_context,
        length,
    )


def _even(rows: Sequence[Row], max_repeats: int) -> list[Row]:
    """Repeat the rows of facts that have few wordings, so that every fact is asked about equally often."""
    count = Counter(row.group for row in rows)
    most = max(count.values())
    return [row for row in rows for _ in range(min(max_repeats, round(most / count[row.group])))]


class BatchStream:
    """Endless batches of rows that stand alone, each epoch in a new order, near-equal lengths together."""

    def __init__(self, rows: Sequence[Row], maker: ExampleMaker) -> None:
        self.rows, self.maker = _even(rows, maker.mixture.max_repeats), maker

    def __iter__(self) -> Iterator[Batch]:
        rng, budget = self.maker.rng, self.maker.mixture.batch_tokens
        queue: list[Row] = []
        while True:
            while len(queue) < 2000:
                order = list(self.rows)
                rng.shuffle(order)
                queue += order
            chunk, queue = queue[:2000], queue[2000:]
            examples = sorted(self.maker.examples(chunk, alone=True), key=lambda e: len(e.ids))
            batches: list[list[Example]] = [[]]
            for example in examples:
                if batches[-1] and (len(batches[-1]) + 1) * len(example.ids) > budget:
                    batches.append([])
                batches[-1].append(example)
            rng.shuffle(batches)
            for batch in batches:
                yield stack(batch, self.maker.encoder.pad)


class ContextStream:
    """Endless batches of questions behind one shared context."""

    def __init__(self, context: str, rows: Sequence[Row], maker: ExampleMaker) -> None:
        self.rows, self.maker = list(rows), maker
        encoder = maker.encoder
        self.context = [encoder.bos, *encoder.message("system", encoder.encode_batch([context])[0])]

    def __iter__(self) -> Iterator[Batch]:
        limit = self.maker.mixture.max_context_rows
        while True:
            examples = sorted(self.maker.examples(self.rows, alone=False), key=lambda e: len(e.ids))
            batches = [examples[at : at + limit] for at in range(0, len(examples), limit)]
            self.maker.rng.shuffle(batches)
            for batch in batches:
                yield stack_behind(self.context, batch, self.maker.encoder.pad)
