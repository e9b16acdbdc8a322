"""Models to measure with: real shapes with random weights, made in memory, or a folder with a real model.

Speed depends on shapes and not on what the weights say. Two things of plain random weights would disturb: logits are so
flat that ties are common, so the last norm is scaled until they spread as a trained model's do; and tied embeddings
repeat one token for ever, so the layers are scaled until they outweigh the token that went in: every product keeps the
size of its input.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from semcache.daemon.engine.attention import ATTENTION_NAME, register_attention
from semcache.daemon.engine.model import LoadedModel, ModelInfo, load_model, prepare
from semcache.daemon.engine.packed import choose_products
from semcache.daemon.engine.servable import probe
from semcache.daemon.engine.tokenizer import Tokenizer

LOGIT_SPREAD = 4.0  # standard deviation over the vocabulary; without scaling about 0.5
_DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int
    has_tied_embeddings: bool


SHAPES = {
    "tiny": Shape(64, 2, 4, 2, 128, 512, has_tied_embeddings=True),  # for trying the benchmark itself
    "135m": Shape(576, 30, 9, 3, 1536, 49152, has_tied_embeddings=True),
    "1b": Shape(2048, 16, 32, 8, 8192, 128256, has_tied_embeddings=True),
    "7b": Shape(4096, 32, 32, 8, 14336, 32000, has_tied_embeddings=False),
}


def load_shape(name: str, *, device: str = "cpu", context_tokens: int = 2048, seed: int = 0) -> LoadedModel:
    """A model of a shape in `SHAPES`, or the one in the folder `name`; answers never end by themselves.

    Raises ModelLoadError for what cannot be served.
    """
    if name not in SHAPES:
        loaded = load_model(
            name, device=device, dtype="auto", max_context_tokens=context_tokens, progress=lambda *_: None
        )
        return replace(loaded, info=replace(loaded.info, eos_token_ids=()))
    return _described(name, stock_model(name, device=device, context_tokens=context_tokens, seed=seed), seed)


def stock_model(name: str, *, device: str, context_tokens: int, seed: int = 0) -> PreTrainedModel:
    """A random-weight model of a shape in `SHAPES`, with the modules that transformers gives it."""
    register_attention()
    shape = SHAPES[name]
    config = LlamaConfig(
        hidden_size=shape.hidden_size, num_hidden_layers=shape.num_layers, num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads, intermediate_size=shape.intermediate_size, vocab_size=shape.vocab_size,
        tie_word_embeddings=shape.has_tied_embeddings, max_position_embeddings=context_tokens,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    dtype = _DTYPES[torch.device(device).type]
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION_NAME)
    model = model.eval().requires_grad_(False)
    for module in model.base_model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.mul_(module.in_features**-0.5 / config.initializer_range)
    # Logits are the normed state times the embeddings, so their spread is this weight times what those give.
    model.base_model.norm.weight.fill_(LOGIT_SPREAD / (config.initializer_range * shape.hidden_size**0.5))
    return model


def _described(name: str, model: PreTrainedModel, seed: int) -> LoadedModel:
    """The model as the daemon would load it, proven and with its products packed."""
    shape, dtype, device = SHAPES[name], model.dtype, str(model.device)
    context_tokens: int = model.config.max_position_embeddings
    stock = probe(model, shape.vocab_size, context_tokens)
    dtype_name = str(dtype).removeprefix("torch.")
    weights_bytes = sum(parameter.nbytes for parameter in model.parameters())
    info = ModelInfo(
        name=name, folder_id=name, architecture=type(model).__name__,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()), num_layers=stock.num_layers,
        num_kv_heads=stock.num_kv_heads, key_dim=stock.key_dim, value_dim=stock.value_dim,
        vocab_size=shape.vocab_size, context_tokens=context_tokens, device=device, dtype=dtype_name,
        fingerprint=f"random-{name}-{seed}",
        kv_bytes_per_token=stock.num_layers * stock.num_kv_heads * (stock.key_dim + stock.value_dim) * dtype.itemsize,
        weights_bytes=weights_bytes, eos_token_ids=(), pad_token_id=0,
        products=choose_products(device, dtype_name, weights_bytes),
    )  # fmt: skip
    forward, info = prepare(model, info, stock)
    return LoadedModel(forward, _numbered(shape.vocab_size), info)


def _numbered(vocab_size: int) -> Tokenizer:
    """A tokenizer whose words are the numbers of its tokens."""
    raw = RawTokenizer(models.WordLevel({str(i): i for i in range(vocab_size)}, unk_token="0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=raw))
