"""The network of `mini` and what only its training needs: shared-context attention, dropout, weight averaging.

The saved model is a plain `LlamaForCausalLM`; nothing here is needed to load or run it.
"""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mini.tokenizer import MAX_LENGTH, ChatEncoder
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, GenerationConfig, LlamaConfig, LlamaForCausalLM

ATTENTION = "mini_training"


def build_config(vocab_size: int, encoder: ChatEncoder) -> LlamaConfig:
    """A Llama of about five million parameters."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=768,
        max_position_embeddings=MAX_LENGTH,
        rms_norm_eps=1e-6,
        initializer_range=0.02,
        tie_word_embeddings=True,
        attention_bias=False,
        mlp_bias=False,
        bos_token_id=encoder.bos,
        eos_token_id=encoder.end,
        pad_token_id=encoder.pad,
    )


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, prior: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Causal scores of rows among themselves, behind the scores `prior` over a shared context."""
    num_tokens = query.shape[-2]
    future = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=query.device).triu(1)
    scores = query @ key.transpose(-1, -2) * scale
    scores = scores.masked_fill(future, float("-inf"))
    if prior is not None:
        scores = torch.cat([prior, scores], dim=-1)
    weights = scores.softmax(dim=-1).to(value.dtype)
    own = weights[..., -num_tokens:] @ value
    return own, weights[..., :-num_tokens]


def training_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention over rows of equal length, or over one row that is a context followed by independent questions.

    With `num_context_tokens` = C > 0 the batch is one row [context | question 1 | question 2 | …], every question
    padded to the same length. A question sees the context and itself, so the context is computed once for all of them
    and no [row, row] mask is ever built.
    """
    scale: float = kwargs.get("scaling") or query.shape[-1] ** -0.5
    num_context: int = kwargs.get("num_context_tokens") or 0
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if not num_context:
        out, _ = _attend(query, key, value, scale)
        return out.transpose(1, 2).contiguous(), None
    length: int = kwargs["num_question_tokens"]
    heads, dim = query.shape[1], query.shape[3]

    def split(x: Tensor) -> tuple[Tensor, Tensor]:
        rest = x[0, :, num_context:]  # [heads, num_questions * length, dim]
        return x[:, :, :num_context], rest.reshape(heads, -1, length, dim).transpose(0, 1)

    (q_ctx, q), (k_ctx, k), (v_ctx, v) = split(query), split(key), split(value)
    out_ctx = F.scaled_dot_product_attention(q_ctx, k_ctx, v_ctx, is_causal=True, scale=scale)
    flat = query[0, :, num_context:]  # [heads, num_questions * length, dim]
    prior = (flat * scale) @ k_ctx[0].transpose(-1, -2)
    prior = prior.reshape(heads, -1, length, num_context).transpose(0, 1)
    out, weights = _attend(q, k, v, scale, prior)
    from_ctx = weights.transpose(0, 1).reshape(heads, -1, num_context) @ v_ctx[0]
    out = out.transpose(0, 1).reshape(heads, -1, dim) + from_ctx
    return torch.cat([out_ctx, out[None]], dim=2).transpose(1, 2).contiguous(), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """`training_attention` knows who sees whom; padding stands behind everything that is scored."""
    return None


def _fast_norm(self: Any, x: Tensor) -> Tensor:
    return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.variance_epsilon)


def build_training_model(config: LlamaConfig, dropout: float) -> LlamaForCausalLM:
    """A fresh model that trains with the shared-context attention and drops out both residual branches."""
    AttentionInterface.register(ATTENTION, training_attention)
    AttentionMaskInterface.register(ATTENTION, _no_mask)
    model = LlamaForCausalLM(copy.deepcopy(config))
    model.set_attn_implementation(ATTENTION)

    def drop(module: nn.Module, args: Any, output: Any) -> Any:
        if not model.training or dropout == 0:
            return output
        if isinstance(output, tuple):
            return (F.dropout(output[0], dropout), *output[1:])
        return F.dropout(output, dropout)

    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = _fast_norm.__get__(module)  # one kernel instead of five
        elif type(module).__name__ in {"LlamaAttention", "LlamaMLP", "Embedding"}:
            module.register_forward_hook(drop)
    for name, weight in model.named_parameters():  # residual outputs start small, so depth does not add up
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            with torch.no_grad():
                weight.mul_((2 * config.num_hidden_layers) ** -0.5)
    return model


class WeightAverage:
    """Exponential moving average of the weights; its horizon grows with the run so that the start is forgotten."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        current = [p.detach() for _, p in model.named_parameters()]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - decay)


def save_model(weights: dict[str, Tensor], config: LlamaConfig, folder: Path) -> int:
    """Write bf16 weights and configs as a plain Llama checkpoint; returns the number of parameters."""
    plain = LlamaForCausalLM(copy.deepcopy(config))
    missing = plain.load_state_dict(weights, strict=False)
    if missing.unexpected_keys:
        raise ValueError(f"weights that are not a Llama's: {missing.unexpected_keys}")
    plain = plain.to(torch.bfloat16)
    plain.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        do_sample=False,
        max_new_tokens=160,
    )
    plain.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # written 0600, and a package keeps the mode
    return sum(p.numel() for p in plain.parameters())
