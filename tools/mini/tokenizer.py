"""The tokenizer of `mini`: byte-level BPE trained on the train rows, and the chat template.

Knows nothing about the model. Control tokens exist only where the template writes them: the template breaks up any
control-token string found inside a message, so what a user types never becomes one.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BOS, END, SYSTEM, USER, ASSISTANT, PAD = "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>"
CONTROL_TOKENS = (PAD, BOS, END, SYSTEM, USER, ASSISTANT)
MAX_LENGTH = 4096

_DEFUSE = "".join(f" | replace('{token}', '< {token[1:]}')" for token in CONTROL_TOKENS)
CHAT_TEMPLATE = (
    "{{- '<|begin|>' -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('mini knows the roles system, user and assistant, not ' ~ message['role']) -}}"
    "{%- endif -%}"
    "{%- if message['content'] is string -%}{%- set text = message['content'] -%}"
    "{%- else -%}{%- set text = message['content'] | map(attribute='text') | join('') -%}{%- endif -%}"
    "{{- '<|' ~ message['role'] ~ '|>' ~ (text" + _DEFUSE + ") ~ '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE over all 256 bytes: every UTF-8 text has tokens and comes back unchanged."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=4,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files `AutoTokenizer.from_pretrained` reads."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        model_max_length=MAX_LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    wrapped.save_pretrained(folder)


class ChatEncoder:
    """Renders conversations to ids as the chat template does, without Jinja: training renders millions of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.bos, self.end, self.pad = self._id(BOS), self._id(END), self._id(PAD)
        self.role = {"system": self._id(SYSTEM), "user": self._id(USER), "assistant": self._id(ASSISTANT)}

    def _id(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(f"the tokenizer has no {token}")
        return int(found)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of plain texts, none of them a control token (the datasets hold no such string)."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def message(self, role: str, ids: list[int]) -> list[int]:
        """One whole message."""
        return [self.role[role], *ids, self.end]
