"""Prompts and streams that share passes, against each of them alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from semcache.daemon.engine.engine import Engine
from semcache.daemon.request import Request
from semcache.store.tensors import KVSpan
from tests.daemon.engine.conftest import assert_equal_kv, assert_same_or_tied, generate, request_for, start


def alone(engine: Engine, prompt: Sequence[int]) -> tuple[KVSpan, Tensor]:
    """KV and logits of a prompt that is computed one chunk after the other."""
    request = start(engine, request_for(prompt))
    found = engine.kv(request, 0, len(prompt)), request.prompt_logits
    engine.release(request)
    return found


def drive(engine: Engine, requests: list[Request], rng: random.Random) -> int:
    """Prefill all, in passes that are shared with the streams of whoever is through; how many were not."""
    num_apart, waiting, streams = 0, list(requests), []
    while waiting:
        prefills = rng.sample(waiting, rng.randint(1, min(3, len(waiting))))
        found = engine.together(prefills, (), streams)
        if found is None:
            num_apart += 1
            for request in prefills:
                engine.prefill(request)
            tokens = engine.decode(streams) if streams else []
        else:
            tokens = found.tokens
        for stream, token in zip(streams, tokens, strict=True):
            stream.emit([token], "")
        for request in prefills:
            if (first := engine.first_token(request)) is not None:
                request.emit([first], "")
                waiting.remove(request)
                streams.append(request)
    return num_apart


def assert_each_is_as_alone(engine: Engine, prompts: list[list[int]], seed: int) -> int:
    """How many steps were not shared."""
    expected = [alone(engine, prompt) for prompt in prompts]
    requests = [request_for(prompt) for prompt in prompts]
    for request in requests:
        engine.begin(request)
    num_apart = drive(engine, requests, random.Random(seed))
    found = [engine.kv(request, 0, request.num_prompt_tokens) for request in requests]
    for request in requests:
        engine.release(request)
    for request, kv, (expected_kv, logits) in zip(requests, found, expected, strict=True):
        assert_equal_kv(kv, expected_kv)
        assert torch.equal(request.prompt_logits, logits)
        [again] = generate(engine, [request_for(request.prompt_tokens)], len(request.output_tokens))
        assert_same_or_tied(engine, request.prompt_tokens, request.output_tokens, again)
    return num_apart
