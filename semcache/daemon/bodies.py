"""What clients may send, checked: the one place where untrusted JSON becomes our own types."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from semcache.config import Config
from semcache.daemon.live import Ask
from semcache.daemon.request import CacheMode, CacheOptions, Message, Sampling
from semcache.errors import UnsupportedError, UsageError
from semcache.wire.protocol import CACHE_MODES, STRATEGIES

# Fields of OpenAI's API that change nothing here, so ignoring them is honest.
_HARMLESS = {"metadata", "store", "service_tier", "stream_options", "prompt_cache_key", "safety_identifier"}
# Fields that would change the answer; accepted only with the value that asks for nothing.
_ONLY_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1, None), "logprobs": (False, None), "top_logprobs": (0, None), "presence_penalty": (0, None),
    "frequency_penalty": (0, None), "logit_bias": ({}, None), "tools": ([], None), "functions": ([], None),
    "tool_choice": ("none", "auto", None), "function_call": ("none", "auto", None),
    "response_format": ({"type": "text"}, None), "modalities": (["text"], None), "audio": (None,),
    "parallel_tool_calls": (True, False, None), "reasoning_effort": (None,), "prediction": (None,),
}  # fmt: skip


Body = TypeVar("Body", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class _Sampled(_Strict):
    """Ranges are those of OpenAI's API, and refusals name the value."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None

    @field_validator("stop")
    @classmethod
    def _stop_is_short(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > 16 or any(not 1 <= len(stop) <= 256 for stop in stops):
            raise ValueError("at most 16 stop strings of 1 to 256 characters")
        return value

    def sampling(self, config: Config, max_tokens: int | None) -> Sampling:
        temperature = self.temperature if self.temperature is not None else config.generation.temperature
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            temperature=temperature, top_p=self.top_p if self.top_p is not None else 1.0, top_k=self.top_k or 0,
            seed=self.seed, max_tokens=max_tokens or config.generation.max_tokens, stop=stops,
        )  # fmt: skip


class ChatBody(_Sampled):
    """POST /v1/chat/completions."""

    model: str | None = None
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    user: str | None = None
    cache_strategy: str | None = None
    cache: str | None = None
    cache_namespace: str = Field("", pattern=r"^[A-Za-z0-9._-]{0,64}$")
    explain: bool = False
    chat_template_kwargs: dict[str, str | int | float | bool] = Field(default_factory=dict)

    def ask(self, config: Config, user: str, cache_control: str | None) -> Ask:
        messages = tuple(Message("system" if m.role == "developer" else m.role, m.text()) for m in self.messages)
        if messages[-1].role != "user":
            raise UsageError(
                f"the last message has role {messages[-1].role!r}; it must be the user's question", param="messages"
            )
        if not messages[-1].content.strip():
            raise UsageError("the prompt is empty; ask something", param="messages")
        return Ask(
            user=user, messages=messages, model=self.model,
            sampling=self.sampling(config, self.max_completion_tokens or self.max_tokens),
            options=cache_options(config, self.cache_strategy, self.cache, cache_control, self.cache_namespace),
            template_options=tuple(sorted((k, _option(v)) for k, v in self.chat_template_kwargs.items())),
            explains=self.explain,
        )  # fmt: skip


class GenerateParameters(_Sampled):
    max_new_tokens: int | None = Field(None, ge=1)
    do_sample: bool | None = None


class GenerateBody(_Strict):
    """POST /generate, in the manner of TGI."""

    inputs: str
    parameters: GenerateParameters = GenerateParameters()
    user_id: str | None = None
    cache_strategy: str | None = None
    stream: bool = False

    def ask(self, config: Config, user: str) -> Ask:
        if not self.inputs.strip():
            raise UsageError("the prompt is empty; ask something", param="inputs")
        return Ask(
            user=user, messages=(Message("user", self.inputs),),
            sampling=self.parameters.sampling(config, self.parameters.max_new_tokens),
            options=cache_options(config, self.cache_strategy, None, None, ""),
        )  # fmt: skip


class ExplainBody(_Strict):
    """A question to look up without asking it."""

    prompt: str
    system: str | None = None
    user: str | None = None
    cache_strategy: str | None = None
    cache: str | None = None
    cache_namespace: str = Field("", pattern=r"^[A-Za-z0-9._-]{0,64}$")

    def ask(self, config: Config, user: str) -> Ask:
        if not self.prompt.strip():
            raise UsageError("the prompt is empty; ask something", param="prompt")
        system = (Message("system", self.system),) if self.system is not None else ()
        return Ask(
            user=user, messages=(*system, Message("user", self.prompt)), sampling=_Sampled().sampling(config, None),
            options=cache_options(config, self.cache_strategy, self.cache, None, self.cache_namespace),
        )  # fmt: skip


class FeedbackBody(_Strict):
    id: str
    verdict: Literal["wrong", "right"]

    @field_validator("id")
    @classmethod
    def _id_is_one_of_ours(cls, value: str) -> str:
        if not re.fullmatch(r"(req|e)_[0-9a-z]{1,64}", value):
            raise ValueError("must be the id of a request (req_…) or of an entry (e_…)")
        return value


Share = Annotated[float, Field(gt=0, lt=1)]


class TuneBody(_Strict):
    max_error: list[Share] = Field(min_length=1, max_length=20)
    max_hit_error: list[Share] = Field(min_length=1, max_length=20)


class ClearBody(_Strict):
    namespace: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]{1,64}$")
    user: str | None = None
    all: bool = False  # pinned answers too


class CheckBody(_Strict):
    fix: bool = False


class ShutdownBody(_Strict):
    timeout_s: float = Field(30, ge=0, le=3600)


def cache_options(
    config: Config, strategy: str | None, mode: str | None, cache_control: str | None, namespace: str
) -> CacheOptions:
    """Body fields and the Cache-Control header as one; `no_cache` and `off` are two names of one thing."""
    strategy = strategy or config.cache.strategy
    if strategy not in STRATEGIES:
        raise UsageError(
            f"unknown cache strategy {strategy!r}; choose one of {', '.join(STRATEGIES)}", param="cache_strategy"
        )
    if mode is not None and mode not in CACHE_MODES:
        raise UsageError(f"unknown cache mode {mode!r}; choose one of {', '.join(CACHE_MODES)}", param="cache")
    directives = {part.strip().lower() for part in (cache_control or "").split(",") if part.strip()}
    off = strategy == "no_cache" or mode == "off"
    return CacheOptions(
        strategy="no_cache" if off else strategy,
        mode=CacheMode.OFF if off else CacheMode(mode or "auto"),
        refresh="no-cache" in directives, no_store="no-store" in directives,
        cached_only="only-if-cached" in directives, namespace=namespace,
    )  # fmt: skip


def _option(value: str | int | float | bool) -> str:
    """A template option as text from which the template gets the same value back: JSON, or a string that is none."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value)


def parse(cls: type[Body], raw: bytes) -> Body:
    """The checked body, or UsageError that says which field, which value and what is allowed."""
    try:
        data = json.loads(raw or b"{}")
    except (ValueError, UnicodeDecodeError) as error:
        raise UsageError(f"the request body is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"the request body must be a JSON object, not {type(data).__name__}")
    kept = dict(data)
    for name, value in data.items():
        if name in _ONLY_NEUTRAL and name not in cls.model_fields:
            if value not in _ONLY_NEUTRAL[name]:
                raise UnsupportedError(f"{name} = {json.dumps(value)[:80]} is not offered by this server", param=name)
            del kept[name]
        elif name in _HARMLESS and name not in cls.model_fields:
            del kept[name]
    try:
        return cls.model_validate(kept)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        if first["type"] == "extra_forbidden":
            raise UsageError(f"unknown field {where!r}", param=where) from error
        shown = json.dumps(first["input"], default=str)[:80]
        raise UsageError(f"{where} = {shown}: {first['msg']}", param=where) from error
