"""A system in a process of its own.

OpenMP lets the workers of a process sleep sooner once there are more of them than processors, so two systems that
compute in one process slow each other down even while one of them waits.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.answer import Answer, PeerError, System

_TIMEOUT_S = 1800.0


class Apart:
    """Has a system made in a new process by `make(*arguments)`, and asks it there; one call at a time."""

    def __init__(self, name: str, make: Callable[..., System], *arguments: object) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, torch.get_num_threads(), make, arguments), daemon=True
        )
        self._process.start()
        theirs.close()
        self._result()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def ask(self, prompts: Sequence[Sequence[int]], max_tokens: int, *, sampled: bool = False) -> list[Answer]:
        answers: list[Answer] = self._call("ask", list(prompts), max_tokens, sampled=sampled)
        return answers

    def margin(self, prompt: Sequence[int], ours: Sequence[int], theirs: Sequence[int]) -> float | None:
        """As `Stock.margin`, where it is one."""
        margin: float | None = self._call("margin", prompt, ours, theirs)
        return margin

    def ask_after_restore(self, prompt: Sequence[int], max_tokens: int, file: Path) -> Answer:
        """As `LlamaCpp.ask_after_restore`, where it is that."""
        answer: Answer = self._call("ask_after_restore", prompt, max_tokens, file)
        return answer

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(_TIMEOUT_S)

    def _call(self, method: str, *arguments: object, **options: object) -> Any:
        self._connection.send((method, arguments, options))
        return self._result()

    def _result(self) -> Any:
        if not self._connection.poll(_TIMEOUT_S):
            raise PeerError(f"{self.name}: no answer within {_TIMEOUT_S:.0f} s")
        try:
            is_well, result = self._connection.recv()
        except EOFError:
            raise PeerError(f"{self.name}: its process ended") from None
        if not is_well:
            raise PeerError(f"{self.name}: {result}")
        return result


def _serve(connection: Connection, num_threads: int, make: Callable[..., System], arguments: Sequence[object]) -> None:
    torch.set_num_threads(num_threads)
    try:
        system = make(*arguments)
        connection.send((True, None))
    except Exception as error:  # noqa: BLE001 - whatever it is, the process that asks names it
        connection.send((False, f"{type(error).__name__}: {error}"))
        return
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while (called := connection.recv()) is not None:
            method, given, options = called
            try:
                connection.send((True, getattr(system, method)(*given, **options)))
            except Exception as error:  # noqa: BLE001
                connection.send((False, f"{type(error).__name__}: {error}"))
    system.close()
