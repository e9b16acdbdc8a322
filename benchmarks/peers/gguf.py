"""The same weights for llama.cpp: a Llama folder that was made here, as one GGUF file in float32.

Written by the `gguf` package of llama.cpp's authors. Tokens are named by their numbers, as in the folder's tokenizer.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from transformers import LlamaConfig

from benchmarks.peers.answer import PeerError

# Names of the weights of a Llama layer, there and here.
_OF_LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_NORMAL_TOKEN = 1


def write_gguf(folder: Path, path: Path) -> Path:
    """Write the model in `folder` to `path`. Raises PeerError for other architectures than Llama."""
    config = LlamaConfig.from_pretrained(folder)
    if config.architectures != ["LlamaForCausalLM"]:
        raise PeerError(f"only a Llama is written as GGUF here, not {config.architectures}; give --gguf FILE")
    writer: Any = import_module("gguf").GGUFWriter(path, "llama")
    head_dim = config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    _add_tokens(writer, config.vocab_size)
    weights = load_file(next(folder.glob("*.safetensors")))
    for name, weight in _named(weights, config):
        writer.add_tensor(name, np.ascontiguousarray(weight, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokens(writer: Any, vocab_size: int) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    # In this vocabulary's alphabet Ġ is a space.
    writer.add_token_list([f"Ġ{token}" for token in range(vocab_size)])
    writer.add_token_types([_NORMAL_TOKEN] * vocab_size)
    writer.add_token_merges(["Ġ 1"])  # an empty list cannot be written; this one is in the list
    writer.add_add_bos_token(False)


def _named(weights: dict[str, NDArray[Any]], config: LlamaConfig) -> list[tuple[str, NDArray[Any]]]:
    named = [
        ("token_embd.weight", weights["model.embed_tokens.weight"]),
        ("output_norm.weight", weights["model.norm.weight"]),
    ]
    if not config.tie_word_embeddings:
        named.append(("output.weight", weights["lm_head.weight"]))
    num_heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for theirs, ours in _OF_LAYER.items():
            weight = weights[f"model.layers.{layer}.{ours}.weight"]
            if theirs in num_heads:
                weight = _interleaved(weight, num_heads[theirs])
            named.append((f"blk.{layer}.{theirs}.weight", weight))
    return named


def _interleaved(weight: NDArray[Any], num_heads: int) -> NDArray[Any]:
    """Rows in the order in which llama.cpp rotates them: the two numbers of a pair beside each other."""
    num_rows, num_columns = weight.shape
    halves = weight.reshape(num_heads, 2, num_rows // num_heads // 2, num_columns)
    return halves.swapaxes(1, 2).reshape(num_rows, num_columns)
