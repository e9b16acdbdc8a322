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
from semcache.daemon.engine.forward import Pass
from semcache.daemon.engine.kv import DecodeStep, PrefillStep, StepCache
from semcache.daemon.engine.packed import PackedLinear, shared_product

LLAMA_VERSION = 2  # part of the numerics key: raise it whenever the arithmetic below changes
WRITTEN_OUT = f"llama{LLAMA_VERSION}"
# Layers whose forward is the one below. By name, because importing five modules of models costs a start half a second.
_LAYERS = frozenset(
    {"LlamaDecoderLayer", "MistralDecoderLayer", "Phi3DecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
)

Product = Callable[[Tensor], Tensor]


def is_uniform(model: PreTrainedModel) -> bool:
    """Whether all layers have the same parts of the same sizes, so that they call the same kernels."""
    layers = getattr(model.base_model, "layers", None)
    return layers is not None and len({str(layer) for layer in layers}) == 1


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
        return self.together([Pass(tokens, cache, num_logits)])[0]

    def together(self, passes: Sequence[Pass]) -> list[Tensor | None]:
        """What each of several passes gives, with the rows of all in the same products.

        A chunk's rotation, attention and activation, and all of the last layer that is needed for its logits, have the
        shapes of a pass of its own.
        """
        states = self._embedding(_joined_rows([one.tokens.flatten() for one in passes]))  # [n, hidden]
        sizes = [size for one in passes for size in one.cache.step.sizes]
        positions = _joined_rows([one.cache.step.position_ids.flatten() for one in passes])
        rotation = _Rotation.joined([self._rotation(states, of_one) for of_one in torch.split(positions, sizes)])
        *layers, last = self._layers
        for index, layer in enumerate(layers):
            parts = _parts(passes, index, *layer.heads(states, rotation))
            attended = [attend_slots(*part, layer.scaling).flatten(0, 1) for part in parts]
            states = layer.behind(states, _joined_rows(attended), sizes)
        # Of the last layer a prefill needs the KV of all tokens, and everything else of the last token at most.
        parts = _parts(passes, len(layers), *last.heads(states, rotation))
        rows = torch.split(states, [one.tokens.numel() for one in passes])
        return [
            self._logits(one.num_logits, *of_one)
            for one, of_one in zip(passes, zip(rows, parts, strict=True), strict=True)
        ]

    def rows(self, states: Tensor, positions: Tensor) -> list[Tensor]:
        """What the first layer does row by row with states [n, hidden] at positions [n]; for trials.

        What it attends to are its queries. Rotation and activations come row by row: `together` computes them chunk by
        chunk. Nothing is added to the output of attention, which would hide its last bits.
        """
        layer, sizes = self._layers[0], [1] * len(states)
        rotation = _Rotation.joined([self._rotation(states, position) for position in torch.split(positions, sizes)])
        query, keys, values = layer.heads(states, rotation)
        return [query, keys, values, layer.behind(torch.zeros_like(states), query, sizes)]

    def _rotation(self, states: Tensor, positions: Tensor) -> _Rotation:
        return _Rotation.of(*self._rotary(states, position_ids=positions[None]))

    def _logits(self, num_logits: int, states: Tensor, part: Part) -> Tensor | None:
        """Of one pass, whose states [tokens, hidden] have come to the last layer."""
        if not num_logits:
            return None
        last, (step, query, keys, values) = self._layers[-1], part
        batch, _, num_tokens, _ = query.shape
        if num_logits == 1 < num_tokens:
            attended, states = attend_last(query, keys, values, last.scaling), states[-1:]
        else:
            attended = attend_slots(step, query, keys, values, last.scaling)
        states = last.behind(states, attended, [len(states)]).view(batch, -1, states.shape[-1])
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

    @classmethod
    def joined(cls, rotations: Sequence[_Rotation]) -> _Rotation:
        if len(rotations) == 1:
            return rotations[0]
        return cls(torch.cat([one.cos for one in rotations]), torch.cat([one.sin for one in rotations]))

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

    def heads(self, states: Tensor, rotation: _Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of states [n, hidden]; [n, heads, dim] each."""
        num_rotated = self._num_heads + self._num_kv_heads
        heads = self._qkv(self._attention_norm.of_states(states)).view(len(states), -1, self._head_dim)
        rotated = heads[:, :num_rotated]  # queries and keys
        if self._head_norm is not None:
            weight, epsilon = self._head_norm
            rotated = F.rms_norm(rotated, (self._head_dim,), None, epsilon) * weight
        rotated = rotation.turned(rotated)
        return rotated[:, : self._num_heads], rotated[:, self._num_heads :], heads[:, num_rotated:]

    def behind(self, states: Tensor, attended: Tensor, sizes: Sequence[int]) -> Tensor:
        """States [n, hidden] behind this layer, from those before it and from attention.

        Activations take `sizes` rows at once: a vector's kernel and the one for what is left of a row round
        differently, and which values are left depends on how many there are and on the number of threads.
        """
        states = self._output(attended.reshape(len(states), -1), states)
        gate, up = self._gate_up(self._mlp_norm.of_states(states)).chunk(2, dim=-1)
        if len(sizes) == 1:
            return self._down(self._activation(gate).mul_(up), states)
        gated = torch.empty_like(up, memory_format=torch.contiguous_format)
        parts = (torch.split(rows, list(sizes)) for rows in (gate, up, gated))
        for gate_part, up_part, out in zip(*parts, strict=True):
            torch.mul(self._activation(gate_part), up_part, out=out)
        return self._down(gated, states)


# A step, its queries [batch, heads, tokens, dim], and the keys and values that they attend to.
Part = tuple[PrefillStep | DecodeStep, Tensor, Tensor, Tensor]


def _parts(passes: Sequence[Pass], index: int, query: Tensor, keys: Tensor, values: Tensor) -> list[Part]:
    """Write the KV [n, heads, dim] that layer `index` has of each pass, one behind the other; what each attends to."""
    heads, parts, start = (query, keys, values), [], 0
    for one in passes:
        batch, stop = len(one.tokens), start + one.tokens.numel()
        query, keys, values = (rows[start:stop].view(batch, -1, *rows.shape[1:]).transpose(1, 2) for rows in heads)
        parts.append((one.cache.step, query, *one.cache.update(keys, values, index)))
        start = stop
    return parts


def _joined_rows(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


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
