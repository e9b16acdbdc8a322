"""Text to token ids and back: chat template, plain text, decode. Callers may use several threads; one lock inside.

Text inside messages never becomes a control token: strings like `<|im_end|>` in it are encoded as plain text
(`sanitize_control_tokens` of transformers). `encode_text` is for raw prompts, where control tokens are meant.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from semcache.daemon.engine.source import one_line
from semcache.daemon.engine.stream import TextStream
from semcache.daemon.request import Message
from semcache.errors import ModelLoadError, UsageError

_SYSTEM_PROBE = "5f1c3a system probe"


class Tokenizer:
    """The tokenizer of one model, with the rules for models that lack a chat template or a system role."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # Encoding with and without control tokens switches a flag inside the shared tokenizer.
        self._lock = threading.Lock()
        self.has_template = bool(tokenizer.chat_template)
        self.has_system_role = self.has_template and self._renders_system()

    @property
    def eos_token_id(self) -> int | None:
        token: int | None = self._tokenizer.eos_token_id
        return token

    @property
    def pad_token_id(self) -> int | None:
        token: int | None = self._tokenizer.pad_token_id
        return token

    def encode_chat(self, messages: Sequence[Message], options: Mapping[str, str] | None = None) -> list[int]:
        """Ids of the conversation followed by the opening of the assistant's turn.

        `options` go to the template; JSON values in them are parsed, so "false" is false. A model without a template
        gets "System: …", "User: …", "Assistant:" lines; a template without a system role gets the system text in
        front of the first user message.
        """
        if not self.has_template:
            return self._encode_plain_chat(messages)
        if not self.has_system_role:
            messages = _fold_system(messages)
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            with self._lock:
                return self._apply(turns, {name: _parsed(text) for name, text in (options or {}).items()})
        except TemplateError as error:
            raise UsageError(f"the model's chat template refuses these messages: {error}", param="messages") from error

    def encode_text(self, text: str) -> list[int]:
        """Ids of a raw prompt, control tokens recognised, with what the tokenizer puts in front (BOS)."""
        with self._lock:
            ids: list[int] = self._tokenizer(text, split_special_tokens=False)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without control tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def stream(self, stop: Sequence[str] = ()) -> TextStream:
        """An incremental decoder for one answer."""
        return TextStream(self.decode, stop)

    def _apply(self, turns: list[dict[str, str]], options: dict[str, Any]) -> list[int]:
        ids: list[int] = self._tokenizer.apply_chat_template(
            turns,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            sanitize_control_tokens=True,
            **options,
        )
        return ids

    def _encode_plain_chat(self, messages: Sequence[Message]) -> list[int]:
        lines = [f"{message.role.capitalize()}: {message.content}\n" for message in messages]
        text = "".join([*lines, "Assistant:"])
        with self._lock:
            ids: list[int] = self._tokenizer(text, split_special_tokens=True)["input_ids"]
        return ids

    def _renders_system(self) -> bool:
        """Whether system text arrives in the prompt; some templates raise, some drop it without a word."""
        turns = [{"role": "system", "content": _SYSTEM_PROBE}, {"role": "user", "content": "hello"}]
        try:
            return _SYSTEM_PROBE in self._tokenizer.apply_chat_template(turns, tokenize=False)
        except (TemplateError, TypeError, KeyError, IndexError):
            return False


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a model folder."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelLoadError(f"its tokenizer cannot be loaded: {one_line(error)}") from error
    return Tokenizer(tokenizer)


def _fold_system(messages: Sequence[Message]) -> list[Message]:
    """System texts put in front of the first user message, for templates without a system role."""
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    rest = [message for message in messages if message.role != "system"]
    for i, message in enumerate(rest):
        if message.role == "user" and system:
            rest[i] = Message("user", f"{system}\n\n{message.content}")
            break
    return rest


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
