"""The stock model of transformers on the same weights: `generate()`, and continuous batching in one process."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from benchmarks.peers.answer import Answer, PeerError, first_difference

PAGE_TOKENS = 64
_TIMEOUT_S = 600.0


def load_stock(folder: Path, *, device: str, dtype: str) -> Any:
    """The model as transformers loads it, with SDPA attention; answers never end by themselves."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="sdpa", local_files_only=True
    )
    model = model.to(device).eval().requires_grad_(False)
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    return model


def make_generate(folder: Path, device: str, dtype: str) -> Generate:
    """In a process that does nothing else."""
    _be_quiet()
    return Generate(load_stock(folder, device=device, dtype=dtype))


def make_batching(folder: Path, device: str, dtype: str, capacity_tokens: int, batch_tokens: int) -> ContinuousBatching:
    """In a process that does nothing else."""
    _be_quiet()
    model = load_stock(folder, device=device, dtype=dtype)
    return ContinuousBatching(model, capacity_tokens=capacity_tokens, batch_tokens=batch_tokens)


def _be_quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)


class Generate:
    """`model.generate()`, one prompt after the other."""

    name = "generate"

    def __init__(self, model: Any) -> None:
        self.model = model

    def ask(self, prompts: Sequence[Sequence[int]], max_tokens: int, *, sampled: bool = False) -> list[Answer]:
        return [self._one(prompt, max_tokens, sampled) for prompt in prompts]

    def _one(self, prompt: Sequence[int], max_tokens: int, sampled: bool) -> Answer:
        stamps = _Stamps()
        how: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_k": 0} if sampled else {"do_sample": False}
        started = time.perf_counter()
        ids = torch.tensor([list(prompt)], device=self.model.device)
        output = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, streamer=stamps, **how
        )
        tokens = tuple(output[0, len(prompt) :].tolist())
        return Answer(tokens, started, tuple(stamps.seen), time.perf_counter())

    @torch.inference_mode()
    def margin(self, prompt: Sequence[int], ours: Sequence[int], theirs: Sequence[int]) -> float | None:
        """How far apart this model's logits hold the first two tokens that differ; None where none does."""
        at = first_difference(ours, theirs)
        if at is None:
            return None
        ids = torch.tensor([[*prompt, *theirs[:at]]], device=self.model.device)
        logits: Tensor = self.model(input_ids=ids, logits_to_keep=1).logits[0, -1].float()
        return abs(float(logits[ours[at]] - logits[theirs[at]]))

    def close(self) -> None:
        del self.model


class _Stamps(BaseStreamer):  # type: ignore[misc]
    def __init__(self) -> None:
        self.seen: list[float] = []
        self._has_prompt = False

    def put(self, value: Tensor) -> None:
        if self._has_prompt:
            self.seen.append(time.perf_counter())
        self._has_prompt = True  # the first call brings the prompt

    def end(self) -> None:
        pass


class ContinuousBatching:
    """What `generate_batch()` runs on, kept from one call to the next so that its prefix sharing can work.

    Left to themselves its sizes are guessed from free memory, which costs it a factor of five on a CPU.
    """

    name = "generate_batch"

    def __init__(self, model: Any, *, capacity_tokens: int, batch_tokens: int) -> None:
        self._close = ExitStack()
        self._manager = self._close.enter_context(
            model.continuous_batching_context_manager(
                GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=64),
                continuous_batching_config=ContinuousBatchingConfig(
                    page_size=PAGE_TOKENS, num_blocks=-(-capacity_tokens // PAGE_TOKENS), max_batch_tokens=batch_tokens
                ),
            )
        )

    def ask(self, prompts: Sequence[Sequence[int]], max_tokens: int, *, sampled: bool = False) -> list[Answer]:
        """Always greedy: nothing of it replays answers."""
        started = time.perf_counter()
        ids = [
            self._manager.add_request(list(prompt), max_new_tokens=max_tokens, record_timestamps=True)
            for prompt in prompts
        ]
        done: dict[str, Answer] = {}
        while len(done) < len(prompts):
            result = self._manager.get_result(timeout=_TIMEOUT_S)
            if result is None or result.error is not None:
                raise PeerError(f"continuous batching: {result.error if result is not None else 'no result came'}")
            if result.is_finished():
                stamps = tuple(result.timestamps or ())
                tokens = tuple(result.generated_tokens)
                done[result.request_id] = Answer(tokens, started, stamps, time.perf_counter())
        return [done[request_id] for request_id in ids]

    def close(self) -> None:
        self._close.close()
