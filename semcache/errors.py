"""The exception tree: every class carries a stable `code` that crosses HTTP and comes back as the same class.

Messages say what failed, with which value, and what to do. `daemon/app.py` maps classes to HTTP status,
`cli/main.py` maps them to exit codes; nothing else knows about either.
"""

from __future__ import annotations

import copy
from typing import Self


class SemcacheError(Exception):
    """Anything we raise on purpose."""

    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def bare(self) -> Self:
        """The same without traceback and cause, to keep or to raise again: frames hold whatever they worked on."""
        return copy.copy(self)


class UsageError(SemcacheError):
    """A value the caller gave is not acceptable: option, body field, config key, dataset file."""

    code = "invalid_value"


class PromptTooLongError(UsageError):
    """The prompt does not fit the served context; raised before any queue."""

    code = "context_length_exceeded"


class UnsupportedError(UsageError):
    """A parameter of the OpenAI API that this server does not offer."""

    code = "unsupported_parameter"


class ConfigError(UsageError):
    """A configuration key or value is wrong."""

    code = "invalid_config"


class DatasetError(UsageError):
    """A dataset file or one of its rows cannot be read; names file, row and reason."""

    code = "invalid_dataset"


class AuthError(SemcacheError):
    """Who is asking is not known."""

    code = "unauthorized"


class ForbiddenError(SemcacheError):
    """Who is asking may not do this."""

    code = "forbidden"


class NotFoundError(SemcacheError):
    """An entry, model or run with this name does not exist."""

    code = "not_found"


class PinLimitError(SemcacheError):
    """Pins would hold more of the disk, or of a user's quota, than they may."""

    code = "pin_limit"


class BusyError(SemcacheError):
    """The inbox is full; try again after `retry_after_s`."""

    code = "queue_full"


class UnavailableError(SemcacheError):
    """The daemon is loading or draining; try again after `retry_after_s`."""

    code = "unavailable"


class DaemonUnreachableError(SemcacheError):
    """No daemon answers, or it could not be started."""

    code = "daemon_unreachable"


class RequestTimeoutError(SemcacheError):
    """The request did not finish within its time limit."""

    code = "timeout"


class CachedOnlyMissError(SemcacheError):
    """`--cached-only` was asked and no stored answer may be served."""

    code = "only_if_cached_miss"


class GateFailedError(SemcacheError):
    """A `replay --gate` expression is false; the run itself is complete and saved."""

    code = "gate_failed"


class ProtocolError(SemcacheError):
    """Client and daemon speak different protocol versions."""

    code = "protocol_mismatch"


class ModelLoadError(SemcacheError):
    """The model cannot be loaded or served correctly."""

    code = "model_unavailable"


class EngineError(SemcacheError):
    """The engine failed while computing this request."""

    code = "engine_error"


class StoreError(SemcacheError):
    """The data directory cannot be used (locked, unwritable, on a network filesystem)."""

    code = "store_error"


def subclasses(cls: type[SemcacheError]) -> list[type[SemcacheError]]:
    """`cls` and everything below it."""
    return [cls, *(leaf for sub in cls.__subclasses__() for leaf in subclasses(sub))]


def from_code(
    code: str, message: str, *, param: str | None = None, retry_after_s: float | None = None
) -> SemcacheError:
    """Turn a wire code back into the class that was raised; an unknown code is a plain SemcacheError."""
    by_code = {cls.code: cls for cls in subclasses(SemcacheError)}
    return by_code.get(code, SemcacheError)(message, param=param, retry_after_s=retry_after_s)
