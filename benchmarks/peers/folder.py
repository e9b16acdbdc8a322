"""A model folder that every system under test loads by itself, so that all compute with the same weights.

Random weights as they are drawn hardly look at what came before: the answer is one token for ever, and no wrong KV
would change it. Sharper and stronger attention makes one changed prompt token change the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.shapes import SHAPES, stock_model

# Standard deviation of attention scores before the softmax. Thirty layers blow rounding up: behind 1,024 tokens SDPA
# and eager attention differ by 3e-4 of a logit at 1, by 2e-3 at 1.2 and by 7e-2 at 2, where no two
# kernels agree any more.
_SCORE_SPREAD = 1.0
_ATTENTION_GAIN = 10.0


def write_model(shape: str, folder: Path, *, device: str, context_tokens: int) -> Path:
    """Save a random-weight model of a shape, with a tokenizer whose words are the numbers of its tokens."""
    model = stock_model(shape, device=device, context_tokens=context_tokens)
    _listen(model)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    raw = RawTokenizer(models.WordLevel({str(i): i for i in range(SHAPES[shape].vocab_size)}, unk_token="0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(folder)
    return folder


def _listen(model: Any) -> None:
    """Scale weights in place until answers depend on the whole prompt; sizes, and so speed, stay."""
    config = model.config
    gain = _SCORE_SPREAD**0.5 / (config.initializer_range * config.hidden_size**0.5)
    for layer in model.base_model.layers:
        layer.self_attn.q_proj.weight.mul_(gain)
        layer.self_attn.k_proj.weight.mul_(gain)
        layer.self_attn.o_proj.weight.mul_(_ATTENTION_GAIN)


def as_text(tokens: Sequence[int]) -> str:
    """The text whose tokens these are, for a model made here."""
    return " ".join(map(str, tokens))


def as_tokens(text: str) -> tuple[int, ...]:
    """The tokens that a model made here answered with; none where it is another's text."""
    words = text.split()
    return tuple(map(int, words)) if all(word.isdecimal() for word in words) else ()
