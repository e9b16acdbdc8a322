"""llama.cpp through llama-cpp-python, in this process; its prefix cache keeps the last prompt only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.answer import Answer


class LlamaCpp:
    """One model in GGUF; several prompts are answered one after the other."""

    name = "llama_cpp"

    def __init__(self, gguf: Path, *, context_tokens: int) -> None:
        num_threads = torch.get_num_threads()
        self._model: Any = import_module("llama_cpp").Llama(
            model_path=str(gguf), n_ctx=context_tokens, n_threads=num_threads, n_threads_batch=num_threads,
            verbose=False,
        )  # fmt: skip

    def ask(self, prompts: Sequence[Sequence[int]], max_tokens: int, *, sampled: bool = False) -> list[Answer]:
        started = time.perf_counter()
        return [self._one(prompt, max_tokens, 0.8 if sampled else 0.0, started) for prompt in prompts]

    def _one(self, prompt: Sequence[int], max_tokens: int, temperature: float, started: float) -> Answer:
        tokens: list[int] = []
        stamps: list[float] = []
        # `generate` keeps what the prompt shares with the last one and computes the rest.
        for token in self._model.generate(list(prompt), temp=temperature, top_k=0 if temperature else 1, reset=True):
            tokens.append(int(token))
            stamps.append(time.perf_counter())
            if len(tokens) == max_tokens:
                break
        return Answer((), started, tuple(stamps), time.perf_counter())

    def close(self) -> None:
        self._model.close()
