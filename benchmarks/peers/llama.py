"""llama.cpp through llama-cpp-python, with KV in float32 as everywhere else here.

Its prefix cache keeps the last prompt only, so a prompt that was asked just before is warm.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.answer import Answer, PeerError


class LlamaCpp:
    """One model in GGUF; several prompts are answered one after the other."""

    name = "llama_cpp"

    def __init__(self, gguf: Path, *, context_tokens: int) -> None:
        num_threads = torch.get_num_threads()
        self._library = library = import_module("llama_cpp")
        self._model: Any = library.Llama(
            model_path=str(gguf), n_ctx=context_tokens, n_batch=512, n_threads=num_threads, n_threads_batch=num_threads,
            type_k=library.GGML_TYPE_F32, type_v=library.GGML_TYPE_F32, verbose=False,
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
        return Answer(tuple(tokens), started, tuple(stamps), time.perf_counter())

    def ask_after_restore(self, prompt: Sequence[int], max_tokens: int, file: Path) -> Answer:
        """A sampled answer behind a prompt whose KV comes from a file, into a context that holds nothing.

        Only reading and answering are timed. A new process would also load the model, as ours does before its clock.
        """
        context, tokens = self._model.ctx, (self._library.llama_token * len(prompt))(*prompt)
        self._one(prompt, 1, 0.0, time.perf_counter())
        if not self._library.llama_state_seq_save_file(context, str(file).encode(), 0, tokens, len(prompt)):
            raise PeerError(f"llama.cpp could not write {file}")
        self._model.reset()
        self._model._ctx.kv_cache_clear()
        started = time.perf_counter()
        num_read = ctypes.c_size_t()
        if not self._library.llama_state_seq_load_file(
            context, str(file).encode(), 0, tokens, len(prompt), ctypes.byref(num_read)
        ):
            raise PeerError(f"llama.cpp could not read {file}")
        self._model.input_ids[: num_read.value] = tokens[: num_read.value]
        self._model.n_tokens = num_read.value
        self._model._requires_eval = True
        return self._one(prompt, max_tokens, 0.8, started)

    def close(self) -> None:
        self._model.close()


def make_llama(gguf: Path, context_tokens: int) -> LlamaCpp:
    """For a process of its own."""
    return LlamaCpp(gguf, context_tokens=context_tokens)
