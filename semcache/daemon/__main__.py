"""`python -m semcache.daemon`: settings, lock, socket, then serve until told to stop.

Whoever holds the lock may remove a stale socket; the truth about a running daemon is `connect()`, not a pid file.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import gc
import json
import logging
import os
import signal
import socket as sockets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

from semcache import __version__
from semcache.config import Config
from semcache.errors import ModelLoadError, SemcacheError, StoreError
from semcache.paths import Paths, check_socket_path, make_private_dir
from semcache.wire.protocol import PROTOCOL

log = logging.getLogger("semcache.daemon")

_DRAIN_TIMEOUT_S = 30.0
_IDLE_CHECK_S = 5.0


class ReadyPipe:
    """Tells the starter how far we are, one JSON object a line; silent where nobody listens."""

    def __init__(self, fd: int | None) -> None:
        self._pipe: IO[str] | None = os.fdopen(fd, "w", buffering=1) if fd is not None else None

    def say(self, phase: str, **more: object) -> None:
        if self._pipe is None:
            return
        try:
            self._pipe.write(json.dumps({"phase": phase, **more}) + "\n")
        except OSError:  # the starter went away; we stay
            self._pipe = None

    def close(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


def main() -> int:
    # Before numpy and tokenizers are imported: a second BLAS thread only fights the engine's for two cores, and forked
    # tokenizer threads would warn.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    args = _arguments()
    ready = ReadyPipe(args.ready_fd)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    for chatty in ("httpx", "transformers", "sentence_transformers", "huggingface_hub"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        paths = Paths.resolve(socket=args.socket)
        config = Config.load(paths.config_file, flags=dict(_setting(text) for text in args.set))
        check_socket_path(paths.socket)
        make_private_dir(paths.runtime_dir)
        with _only_daemon(paths):
            ready.say("starting", stage="loading libraries")
            return asyncio.run(_serve(config, paths, ready, autostarted=args.autostarted))
    except SemcacheError as error:
        log.error("%s", error.message)
        ready.say("error", code=error.code, message=error.message)
        return 8 if isinstance(error, ModelLoadError) else 3 if isinstance(error, StoreError) else 2
    finally:
        ready.close()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m semcache.daemon", description="The semcache daemon, in the foreground."
    )
    parser.add_argument("--socket", type=Path, help="Unix socket to listen on")
    parser.add_argument("--ready-fd", type=int, help="write progress as JSON lines to this file descriptor")
    parser.add_argument("--autostarted", action="store_true", help="end after daemon.exit_after_s idle seconds")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one config key")
    return parser.parse_args()


def _setting(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key.strip(), value.strip()


@contextmanager
def _only_daemon(paths: Paths) -> Iterator[None]:
    """Hold `daemon.lock` for the process's life."""
    with open(paths.lock_file, "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StoreError(
                f"another semcache daemon (pid {lock.read().strip() or 'unknown'}) runs with {paths.runtime_dir}; "
                "use it, stop it with `semcache daemon stop`, or set SEMCACHE_HOME for a second one"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _bind(path: Path) -> sockets.socket:
    """A listening Unix socket with mode 0600 from its first moment; a stale one is removed, for we hold the lock."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    listener = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(2048)
    return listener


async def _serve(config: Config, paths: Paths, ready: ReadyPipe, *, autostarted: bool) -> int:
    # Heavy imports wait until the lock is ours.
    with _uncollected():
        import torch
        import uvicorn

        from semcache.daemon.auth import PeerProtocol
        from semcache.daemon.build import build
        from semcache.daemon.engine.threads import compute_with

    loop = asyncio.get_running_loop()
    stopping: asyncio.Future[float] = loop.create_future()

    def shut_down(timeout_s: float) -> None:
        if not stopping.done():
            stopping.set_result(timeout_s)

    daemon = build(
        config, paths.data_dir, socket=paths.socket, autostarted=autostarted, event_loop=loop,
        on_progress=lambda stage, share: ready.say("loading", stage=stage, progress=share), shut_down=shut_down,
    )  # fmt: skip
    num_threads = torch.get_num_threads()
    compute_with(1)  # the engine's thread keeps as many as there are
    listener = _bind(paths.socket)

    class Server(uvicorn.Server):
        """Drains before it closes; a second signal ends at once."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if stopping.done():
                log.warning("second signal, ending at once")
                os._exit(128 + sig)
            loop.call_soon_threadsafe(shut_down, _DRAIN_TIMEOUT_S)

    server = Server(
        uvicorn.Config(
            daemon.app, http=PeerProtocol, ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, timeout_graceful_shutdown=5,
        )
    )  # fmt: skip
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    _write_daemon_file(paths, autostarted)
    ready.say("listening")
    log.info("semcache %s listens on %s, %d torch threads", __version__, paths.socket, num_threads)
    daemon.engine.start()
    daemon.engine.load()
    settle = asyncio.create_task(_settle(daemon, ready))
    idle = asyncio.create_task(_end_when_idle(config, daemon, shut_down)) if autostarted else None
    try:
        waiting: list[asyncio.Future[Any]] = [serving, stopping]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        timeout_s = stopping.result() if stopping.done() else 0.0
        log.info("draining, at most %.0f s", timeout_s)
        await daemon.service.drain(timeout_s)
        daemon.journal.close()
        server.should_exit = True
        await serving
    finally:
        for task in (settle, idle):
            if task is not None:
                task.cancel()
        paths.socket.unlink(missing_ok=True)
        paths.daemon_file.unlink(missing_ok=True)
        await loop.run_in_executor(None, daemon.engine.stop, 10)
        daemon.pool.shutdown(wait=True)
        daemon.store.close()
        log.info("stopped")
    return 0


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection, which finds nothing in what is imported and looks through all of it many times."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


async def _settle(daemon: Any, ready: ReadyPipe) -> None:
    """Load the embedder beside the model, then tell the starter how it went."""
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(daemon.pool, daemon.embedder.load)
    daemon.overview.changed()
    await daemon.overview.until_settled(24 * 3600)
    gc.freeze()  # modules and weights stay: no later collection is to walk through them while streams wait
    problem = daemon.overview.not_ready()
    if problem is None:
        ready.say("ready")
    else:
        ready.say("error", code=problem.code, message=problem.message)
    ready.close()


async def _end_when_idle(config: Config, daemon: Any, shut_down: Any) -> None:
    """End an autostarted daemon that nobody asked anything for `daemon.exit_after_s`."""
    limit_s = config.daemon.exit_after_s
    while limit_s:
        await asyncio.sleep(min(_IDLE_CHECK_S, limit_s))
        if daemon.service.num_live == 0 and daemon.service.idle_s() >= limit_s:
            log.info("idle for %d s, ending", limit_s)
            shut_down(_DRAIN_TIMEOUT_S)
            return


def _write_daemon_file(paths: Paths, autostarted: bool) -> None:
    about = {
        "pid": os.getpid(), "version": __version__, "protocol": PROTOCOL, "socket": str(paths.socket),
        "started_at": time.time(), "autostarted": autostarted,
    }  # fmt: skip
    paths.daemon_file.write_text(json.dumps(about) + "\n", encoding="utf-8")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)  # everything is closed; tearing down torch would take another second
