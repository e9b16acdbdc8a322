"""Tiny random models of five families on disk, with a byte-level tokenizer, and engines over them."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from semcache.daemon.engine.engine import Engine
from semcache.daemon.engine.forward import ModuleForward
from semcache.daemon.engine.model import LoadedModel, load_model
from semcache.daemon.engine.packed import PLAIN
from semcache.daemon.request import CacheOptions, Message, Request, Sampling
from semcache.store.tensors import KVSpan

FAMILIES = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "phi3": Phi3Config,
}
CONTEXT_TOKENS = 256
CHUNK_TOKENS = 16
CONTROL_TOKENS = ["<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """256 bytes, no merges, two control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = RawTokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(CONTROL_TOKENS)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = template
    return tokenizer


def tiny_config(family: str, **overrides: Any) -> Any:
    settings = {
        "vocab_size": 272,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": CONTEXT_TOKENS,
        "initializer_range": 0.2,  # wide, so that attention decides tokens and top-two margins are clear
        "bos_token_id": None,
        "eos_token_id": 257,
        "pad_token_id": 257,
        "tie_word_embeddings": False,
    }
    if family == "phi3":
        settings.pop("head_dim")
        settings["original_max_position_embeddings"] = CONTEXT_TOKENS
    if family == "mistral":
        settings["sliding_window"] = CONTEXT_TOKENS
    return FAMILIES[family](**{**settings, **overrides})


def save_model(folder: Path, family: str = "llama", template: str | None = TEMPLATE, **overrides: Any) -> Path:
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(tiny_config(family, **overrides)).save_pretrained(folder)
    byte_tokenizer(template).save_pretrained(folder)
    return folder


def save_config(folder: Path, config: Any) -> Path:
    """Random weights of any architecture, with the same tokenizer."""
    save_model(folder)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load(folder: Path | str, dtype: str = "float32", **options: Any) -> LoadedModel:
    settings = {"device": "cpu", "max_context_tokens": CONTEXT_TOKENS, "progress": lambda *_: None, **options}
    return load_model(str(folder), dtype=dtype, **settings)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products gain nothing from threads, and on a busy machine waiting for them takes minutes."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = save_model(tmp_path_factory.mktemp("models") / family, family)
        return made[family]

    return folder


@pytest.fixture(scope="session")
def loaded(model_folder: Callable[[str], Path]) -> Callable[..., LoadedModel]:
    made: dict[tuple[str, str], LoadedModel] = {}

    def get(family: str = "llama", dtype: str = "float32") -> LoadedModel:
        if (family, dtype) not in made:
            made[family, dtype] = load(model_folder(family), dtype)
        return made[family, dtype]

    return get


@pytest.fixture
def plain_llama(model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """A model of its own with the modules that transformers gives it."""
    monkeypatch.setattr("semcache.daemon.engine.model.choose_products", lambda *_: PLAIN)
    plain = load(model_folder("llama"))
    return replace(plain, forward=ModuleForward(plain.model))


@pytest.fixture
def engine(loaded: Callable[..., LoadedModel]) -> Engine:
    return Engine(loaded(), num_slots=4, prefill_chunk_tokens=CHUNK_TOKENS)


_numbers = itertools.count()


def random_prompt(rng: random.Random, num_tokens: int) -> list[int]:
    return [rng.randrange(256) for _ in range(num_tokens)]


def request_for(tokens: Sequence[int], sampling: Sampling | None = None, **fields: Any) -> Request:
    return Request(
        id=f"req_{next(_numbers)}",
        user="os:1",
        model="tiny",
        messages=(Message("user", "?"),),
        prompt_tokens=tuple(tokens),
        sampling=sampling or Sampling(),
        options=CacheOptions(),
        publish=lambda event: None,
        **fields,
    )


def restored_request(tokens: Sequence[int], spans: list[KVSpan], **fields: Any) -> Request:
    return request_for(tokens, restored=spans, num_restored=sum(span.num_tokens for span in spans), **fields)


def start(engine: Engine, request: Request) -> Request:
    """Begin and prefill to the first token."""
    engine.begin(request)
    token = None
    while token is None:
        token = engine.prefill(request)
    request.emit([token], "")
    return request


def generate(engine: Engine, requests: Sequence[Request], num_tokens: int) -> list[list[int]]:
    """Start all, decode all together, release all; the tokens of each."""
    for request in requests:
        start(engine, request)
    for _ in range(num_tokens - 1):
        for request, token in zip(requests, engine.decode(requests), strict=True):
            request.emit([token], "")
    for request in requests:
        engine.release(request)
    return [request.output_tokens for request in requests]


def stock_tokens(loaded: LoadedModel, prompt: list[int], num_tokens: int) -> list[int]:
    """What `generate()` of the stock model says."""
    ids = torch.tensor([prompt], device=loaded.info.device)
    loaded.model.set_attn_implementation("sdpa")
    try:
        output = loaded.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False, eos_token_id=None
        )
    finally:
        loaded.model.set_attn_implementation("semcache_slots")
    return output[0, len(prompt) :].tolist()


def assert_equal_kv(ours: KVSpan, theirs: KVSpan) -> None:
    assert torch.equal(ours.keys, theirs.keys)
    assert torch.equal(ours.values, theirs.values)


def assert_same_or_tied(engine: Engine, prompt: Sequence[int], ours: Sequence[int], theirs: Sequence[int]) -> None:
    """Equal tokens; a divergence is printed with its margin and allowed only at a tie."""
    at = next((i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), None)
    if at is None:
        return
    request = start(engine, request_for([*prompt, *theirs[:at]]))
    engine.release(request)
    logits = request.prompt_logits
    assert isinstance(logits, torch.Tensor)
    margin = float(logits.max() - logits[[ours[at], theirs[at]]].min())
    print(f"{engine.info.name}: token {at} is {ours[at]} and not {theirs[at]}, margin {margin:.2g}")
    assert margin <= engine.tie_margin
