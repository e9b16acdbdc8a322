"""Whether a model can be served correctly: what its configuration says, and what two forwards prove.

Every refusal is a ModelLoadError whose sentence names the reason. Never silently wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from semcache.daemon.engine.attention import ATTENTION_NAME
from semcache.daemon.engine.decode import DecodeRow, decode_rows
from semcache.daemon.engine.forward import Forward
from semcache.daemon.engine.kv import SlotPool
from semcache.daemon.engine.prefill import prefill_chunk
from semcache.errors import ModelLoadError

DEFAULT_CONTEXT_TOKENS = 8192
_STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn", "proportional"})
_FULL_ATTENTION = frozenset({"full_attention", "sliding_attention"})  # sliding only where the window is long enough
_NUM_PROBE_TOKENS = 40
_PROBE_CHUNK_TOKENS = 13
# Allowed difference of logits (root mean square, in standard deviations of the logits): twice what the model's own
# sdpa and eager attention differ by, within these bounds. Rounding measured 2e-6 in float32 and 0.01 in bfloat16, one
# key too few 0.04 to 0.7.
_MIN_TOLERANCE = {"float32": 1e-3, "float16": 5e-3, "bfloat16": 0.03}
_MAX_TOLERANCE = 0.5


def served_context(config: PretrainedConfig, max_context_tokens: int | None) -> int:
    """Tokens of context that can be served exactly; raises for what the engine does not implement."""
    if getattr(config, "is_encoder_decoder", False):
        raise ModelLoadError("it is an encoder-decoder; semcache serves decoder-only models")
    layer_types = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    unknown = sorted(set(layer_types or ()) - _FULL_ATTENTION)
    if unknown:
        raise ModelLoadError(f"it has {', '.join(unknown)} layers, whose state is not a KV cache of all tokens")
    model_tokens = getattr(config, "max_position_embeddings", None) or DEFAULT_CONTEXT_TOKENS
    context_tokens = min(int(model_tokens), max_context_tokens or DEFAULT_CONTEXT_TOKENS)
    for rope in _rope_parameters(config):
        context_tokens = min(context_tokens, _rope_limit(config, rope, context_tokens))
    window = getattr(config, "sliding_window", None)
    if window is not None and window < context_tokens and (not layer_types or "sliding_attention" in layer_types):
        raise ModelLoadError(
            f"its attention slides over {window} tokens, less than the served context of {context_tokens}; "
            f"set engine.max_context_tokens to at most {window}"
        )
    return context_tokens


def _rope_parameters(config: PretrainedConfig) -> list[dict[str, Any]]:
    """RoPE parameters, one dictionary or one per kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [rope] if "rope_type" in rope else [nested for nested in rope.values() if isinstance(nested, dict)]


def _rope_limit(config: PretrainedConfig, rope: dict[str, Any], context_tokens: int) -> int:
    kind = rope.get("rope_type", "default")
    if kind in _STATIC_ROPE:
        return context_tokens
    if kind == "longrope":
        # Below its switch length longrope is static; above, the keys of one prompt would depend on its length.
        limit = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        if limit:
            return int(limit)
    raise ModelLoadError(f"its {kind} RoPE changes keys with the length of the prompt, so KV cannot be reused")


@dataclass(frozen=True)
class Probe:
    """What one stock forward over random tokens showed."""

    tokens: list[int]
    logits: Tensor  # [tokens, vocab], float32 on the host
    tolerance: float
    num_layers: int
    num_kv_heads: int
    key_dim: int
    value_dim: int


@torch.inference_mode()
def probe(model: PreTrainedModel, vocab_size: int, context_tokens: int) -> Probe:
    """Run the model's stock attention and read K and V shapes where it hands them to its cache."""
    generator = torch.Generator().manual_seed(0)
    num_tokens = min(_NUM_PROBE_TOKENS, context_tokens)
    tokens = torch.randint(vocab_size, (1, num_tokens), generator=generator)
    cache = _ShapeCache()
    ids = tokens.to(model.device)
    with stock_attention(model, "sdpa"):
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[0].to("cpu", torch.float32)
    with stock_attention(model, "eager"):
        rounded = model(input_ids=ids, use_cache=False).logits[0].to("cpu", torch.float32)
    noise = max(_difference(*rows) for rows in zip(rounded, logits, strict=True))
    shapes, distinct = cache.shapes, set(cache.shapes.values())
    if sorted(shapes) != list(range(len(shapes))) or len(distinct) != 1:
        raise ModelLoadError(f"its layers do not share one KV shape: {sorted(distinct) or 'no layer keeps KV'}")
    keys, values = distinct.pop()
    _, num_kv_heads, _, key_dim = keys
    dtype = str(model.dtype).removeprefix("torch.")
    tolerance = min(_MAX_TOLERANCE, max(_MIN_TOLERANCE[dtype], 2 * noise))
    return Probe(tokens[0].tolist(), logits, tolerance, len(shapes), num_kv_heads, key_dim, values[-1])


class _ShapeCache(DynamicCache):  # type: ignore[misc]
    """Notes the shapes of what each layer hands over."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[int, tuple[torch.Size, torch.Size]] = {}

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **options: Any) -> Any:
        self.shapes[layer_idx] = (keys.shape, values.shape)
        return super().update(keys, values, layer_idx, *args, **options)


@contextmanager
def stock_attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """The model with an attention of its own, eager where it has none of that name."""
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError):
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(ATTENTION_NAME)


@torch.inference_mode()
def self_check(forward: Forward, pool: SlotPool, stock: Probe) -> None:
    """Compare chunked prefill and batched decode in slots with the stock forward; raise on any real difference."""
    if forward.model.config._attn_implementation != ATTENTION_NAME:
        raise ModelLoadError("its attention cannot be replaced, so KV cannot be served from slots")
    tokens, chunk, last = stock.tokens, _PROBE_CHUNK_TOKENS, len(stock.tokens) - 1
    for start in range(0, last, chunk):
        stop = min(start + chunk, last)
        logits = prefill_chunk(forward, pool, 0, tokens[start:stop], start, num_logits=1)
        assert logits is not None
        _compare(logits[0], stock.logits[stop - 1], stock.tolerance, f"prefill up to token {stop}")
    first = min(chunk, last)
    # Two rows, of which neither could stand for the other.
    prefix = pool.snapshot(0, 0, first)
    pool.restore(1, [pool.snapshot(0, 0, last)])
    pool.clear(0, 0, last)
    pool.restore(0, [prefix])
    rows = [DecodeRow(0, first, tokens[first]), DecodeRow(1, last, tokens[last])]
    for row, logits in zip(rows, decode_rows(forward, pool, rows), strict=True):
        _compare(logits, stock.logits[row.position], stock.tolerance, f"decode at token {row.position}")


def _difference(ours: Tensor, stock: Tensor) -> float:
    """Root mean square of the difference, in standard deviations of the stock logits; NaN where either has one."""
    return float((ours - stock).square().mean().sqrt() / stock.std().clamp_min(1e-6))


def _compare(ours: Tensor, stock: Tensor, tolerance: float, where: str) -> None:
    ours = ours.to("cpu", torch.float32)
    difference, top = _difference(ours, stock), stock.topk(2)
    # The largest of many differences is about five times their root mean square, on either token.
    is_clear = float(top.values[0] - top.values[1]) > 10 * tolerance * float(stock.std())
    is_same = int(ours.argmax()) == int(top.indices[0])
    if not difference <= tolerance or (is_clear and not is_same):  # `not <=` also catches NaN
        raise ModelLoadError(
            f"its logits through our KV slots differ from its own attention ({where}: {difference:.2g} standard "
            f"deviations, allowed {tolerance:.2g}), so answers would be wrong"
        )
