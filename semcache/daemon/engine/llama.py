"""The forward of Llama and the families built like it, written out: the same arithmetic in a third of the operations.

A decode step of a small model is a few dozen products and, through the modules of transformers, some thousand small
operations around them, each of which costs more to start than to run. Here a layer is its products, two norms, one
rotation for queries and keys together, and attention. Which modules hold the weights and in which layout is not known
here; the model's own forward stays the measure, and a self-check at load decides whether this one may stand for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from semcache.daemon.engine.attention import attend_last, attend_slots
from semcache.daemon.engine.kv import StepCache
from semcache.daemon.engine.packed import PackedLinear, shared_product

LLAMA_VERSION = 2  # part of the numerics key: raise it whenever the arithmetic below changes
WRITTEN_OUT = f"llama{LLAMA_VERSION}"
# Layers whose forward is the one below. By name, because importing five modules of models costs a start half a second.
_LAYERS = frozenset(
    {"LlamaDecoderLayer", "MistralDecoderLayer", "Phi3DecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
)

Product = Callable[[Tensor], Tensor]


def is_llama_like(model: PreTrainedModel) -> bool:
    """Whether the model is of a family whose layers are written out here."""
    layers: Any = getattr(model.base_model, "layers", ())
    return bool(layers) and {type(layer).__name__ for layer in layers} <= _LAYERS and all(
        type(layer).__module__.startswith("transformers.models.") for layer in layers
    )  # fmt: skip


class LlamaForward:
    """A `Forward` over the weights of a model that `is_llama_like`; shapes in comments are for `n` tokens in all."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        base: Any = model.base_model
        self._embedding: nn.Embedding = base.embed_tokens
        self._rotary: Callable[..., tuple[Tensor, Tensor]] = base.rotary_emb
        self._layers = [_Layer(layer) for layer in base.layers]
        self._norm = _Norm.of(base.norm)
        self._head: Product = model.get_output_embeddings()

    def __call__(self, tokens: Tensor, cache: StepCache, num_logits: int) -> Tensor | None:
        batch, num_tokens = tokens.shape
        states = self._embedding(tokens)  # [batch, tokens, hidden]
        rotation = _Rotation.of(*self._rotary(states, position_ids=cache.step.position_ids))
        states = states.view(batch * num_tokens, -1)  # [n, hidden]
        *layers, last = self._layers
        for index, layer in enumerate(layers):
            query, keys, values = layer.heads(states, rotation, cache, index)
            states = layer.behind(states, attend_slots(cache.step, query, keys, values, layer.scaling))
        # Of the last layer a prefill needs the KV of all tokens, and everything else of the last token at most.
        query, keys, values = last.heads(states, rotation, cache, len(layers))
        if not num_logits:
            return None
        if num_logits == 1 < num_tokens:
            attended, states = attend_last(query, keys, values, last.scaling), states[-1:]
        else:
            attended = attend_slots(cache.step, query, keys, values, last.scaling)
        states = last.behind(states, attended).view(batch, -1, states.shape[-1])
        return self._head(self._norm.of_states(states[:, -num_logits:]))


@dataclass(frozen=True)
class _Norm:
    weight: Tensor
    epsilon: float

    @classmethod
    def of(cls, module: Any) -> _Norm:
        return cls(module.weight, module.variance_epsilon)

    def of_states(self, states: Tensor) -> Tensor:
        """Of states [n, hidden]."""
        if states.is_cuda or states.dtype != torch.float32:  # a kernel of its own, or computed in float32
            return F.rms_norm(states, self.weight.shape, self.weight, self.epsilon)
        # What F.rms_norm does on the CPU, in half of its passes over the states.
        norm: Tensor = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        scale = norm.square_().div_(states.shape[-1]).add_(self.epsilon).rsqrt_()
        return (states * scale).mul_(self.weight)


@dataclass(frozen=True)
class _Rotation:
    """Rotary embedding of every token: x * cos + x with its halves swapped * sin."""

    cos: Tensor  # [n, 1, dim]
    sin: Tensor  # [n, 1, dim], the first half negated

    @classmethod
    def of(cls, cos: Tensor, sin: Tensor) -> _Rotation:
        """From what the model's rotary module gives, [batch, tokens, dim] each."""
        half = sin.shape[-1] // 2
        signed = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        return cls(cos.reshape(-1, 1, cos.shape[-1]), signed.view(-1, 1, sin.shape[-1]))

    def turned(self, heads: Tensor) -> Tensor:
        """Heads [n, num_heads, dim] at their positions."""
        return torch.addcmul(heads * self.cos, heads.roll(heads.shape[-1] // 2, dims=-1), self.sin)


class _Layer:
    """One layer, up to its attention and behind it: each half begins with a norm and ends with the residual added."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._attention_norm = _Norm.of(layer.input_layernorm)
        self._mlp_norm = _Norm.of(layer.post_attention_layernorm)
        self._qkv = _joined(_children(attention, ("q_proj", "k_proj", "v_proj"), "qkv_proj"))
        self._gate_up = _joined(_children(mlp, ("gate_proj", "up_proj"), "gate_up_proj"))
        self._output, self._down = _with_residual(attention.o_proj), _with_residual(mlp.down_proj)
        self._activation: Product = mlp.act_fn if hasattr(mlp, "act_fn") else mlp.activation_fn
        self._head_dim: int = attention.head_dim
        self._num_heads: int = attention.config.num_attention_heads
        self._num_kv_heads: int = attention.config.num_key_value_heads
        self.scaling: float = attention.scaling
        # Qwen3 normalises queries and keys per head: one norm, then the weight of each head.
        self._head_norm: tuple[Tensor, float] | None = None
        if hasattr(attention, "q_norm"):
            weights = [
                norm.weight.expand(num_heads, -1)
                for norm, num_heads in ((attention.q_norm, self._num_heads), (attention.k_norm, self._num_kv_heads))
            ]
            self._head_norm = torch.cat(weights), attention.q_norm.variance_epsilon

    def heads(self, states: Tensor, rotation: _Rotation, cache: StepCache, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Write the KV of states [n, hidden] through `cache`; the queries [batch, num_heads, tokens, dim], and what
        attention reads.
        """
        num_rotated = self._num_heads + self._num_kv_heads
        heads = self._qkv(self._attention_norm.of_states(states)).view(len(states), -1, self._head_dim)
        rotated = heads[:, :num_rotated]  # queries and keys, [n, heads, dim]
        if self._head_norm is not None:
            weight, epsilon = self._head_norm
            rotated = F.rms_norm(rotated, (self._head_dim,), None, epsilon) * weight
        rotated = rotation.turned(rotated)
        batch = len(cache.step.position_ids)

        def per_row(part: Tensor) -> Tensor:  # [batch, heads, tokens, dim]
            return part.view(batch, -1, *part.shape[1:]).transpose(1, 2)

        keys, values = cache.update(per_row(rotated[:, self._num_heads :]), per_row(heads[:, num_rotated:]), index)
        return per_row(rotated[:, : self._num_heads]), keys, values

    def behind(self, states: Tensor, attended: Tensor) -> Tensor:
        """States [n, hidden] behind this layer, from those before it and from attention."""
        states = self._output(attended.reshape(len(states), -1), states)
        gate, up = self._gate_up(self._mlp_norm.of_states(states)).chunk(2, dim=-1)
        return self._down(self._activation(gate).mul_(up), states)


def _children(module: Any, names: tuple[str, ...], joined_name: str) -> list[nn.Module]:
    """The products with one input: one of the given name, or those that it would join."""
    return [getattr(module, joined_name)] if hasattr(module, joined_name) else [getattr(module, n) for n in names]


def _joined(modules: Sequence[nn.Module]) -> Product:
    """Outputs of modules with one input beside each other, from one product where their weights lie together."""
    if len(modules) == 1:
        return modules[0]
    if (product := shared_product(modules)) is not None:
        return product
    return lambda states: torch.cat([module(states) for module in modules], dim=-1)


def _with_residual(module: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The module's output with the residual added."""
    if isinstance(module, PackedLinear):
        return module.added
    return lambda states, residual: residual + module(states)
