"""The checks of `semcache doctor`, one function each. None of them imports torch: a subprocess does that."""

from __future__ import annotations

import os
import platform
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from semcache import __version__, errors
from semcache.cli import machine
from semcache.cli.connect import answers, paths_of
from semcache.cli.options import Options
from semcache.cli.process import is_locked
from semcache.cli.render import size
from semcache.config import Config
from semcache.paths import Paths

MIN_DISK_BYTES, LOW_DISK_BYTES = 200_000_000, 2_000_000_000
LOW_MEMORY_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Check:
    """One finding; `fix` says what to do where the status is not ok."""

    id: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str | None = None


def every_check(options: Options) -> Iterator[Check]:
    """All checks in the order in which one breaks the next."""
    yield python()
    try:
        paths = paths_of(options)
    except errors.ConfigError as error:
        yield Check("socket", "fail", error.message, "set SEMCACHE_HOME to a shorter path")
        return
    yield Check("socket", "ok", f"{paths.socket}, {len(os.fsencode(paths.socket))} bytes")
    config = None
    try:
        config = Config.load(paths.config_file)
        yield Check("config", "ok", f"{paths.config_file}{'' if paths.config_file.exists() else ' (all defaults)'}")
    except errors.ConfigError as error:
        yield Check("config", "fail", error.message, "semcache config unset KEY, or edit the file")
    yield from folders(paths)
    yield filesystem(paths)
    yield disk(paths)
    yield memory()
    yield torch()
    if config:
        yield model(config.model.name)
        yield embedder(config.semantic.embedder)
    yield daemon(options, paths)
    yield leftovers(paths)


def python() -> Check:
    versions = [f"python {platform.python_version()}", f"semcache {__version__}"]
    for package in ("torch", "transformers", "sentence-transformers"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            return Check("python", "fail", f"{package} is not installed", f"{sys.executable} -m pip install {package}")
    return Check("python", "ok", " · ".join(versions))


def folders(paths: Paths) -> Iterator[Check]:
    named = {"config": paths.config_dir, "data": paths.data_dir, "state": paths.state_dir, "runtime": paths.runtime_dir}
    for name, folder in named.items():
        yield _folder(f"{name}-folder", folder, private=name == "runtime")


def _folder(check_id: str, folder: Path, *, private: bool) -> Check:
    there = machine.existing_parent(folder)
    fix = f"make {there} yours and writable, or set SEMCACHE_HOME"
    if not there.is_dir():
        return Check(check_id, "fail", f"{there} is not a folder", f"remove {there}, or set SEMCACHE_HOME")
    if not os.access(there, os.W_OK | os.X_OK):
        return Check(check_id, "fail", f"{there} is not writable", fix)
    if there != folder:
        return Check(check_id, "ok", f"{folder} (made when needed)")
    info = folder.stat()
    if info.st_uid != os.getuid():
        return Check(check_id, "fail" if private else "warn", f"{folder} belongs to user {info.st_uid}", fix)
    if private and stat.S_IMODE(info.st_mode) & 0o077:
        return Check(
            check_id, "warn", f"{folder} is open to others ({stat.S_IMODE(info.st_mode):o})", f"chmod 700 {folder}"
        )
    return Check(check_id, "ok", str(folder))


def filesystem(paths: Paths) -> Check:
    kind = machine.filesystem_type(machine.existing_parent(paths.data_dir).resolve())
    if machine.is_network(kind):
        return Check(
            "filesystem", "fail", f"{paths.data_dir} is on {kind}, where the database can be damaged",
            "set SEMCACHE_HOME to a folder on a local disk",
        )  # fmt: skip
    return Check("filesystem", "ok", f"{kind or 'unknown'}, local")


def disk(paths: Paths) -> Check:
    free = shutil.disk_usage(machine.existing_parent(paths.data_dir)).free
    status: Literal["ok", "warn", "fail"] = (
        "fail" if free < MIN_DISK_BYTES else "warn" if free < LOW_DISK_BYTES else "ok"
    )
    fix = None if status == "ok" else "free some space, or set SEMCACHE_HOME to a larger disk"
    return Check("disk", status, f"{size(free)} free for {paths.data_dir}", fix)


def memory() -> Check:
    free = machine.available_memory_bytes()
    if free is None:
        return Check("memory", "ok", "not known on this system")
    low = free < LOW_MEMORY_BYTES
    return Check("memory", "warn" if low else "ok", f"{size(free)} available", "close something large" if low else None)


def torch() -> Check:
    found = machine.probe_torch()
    if found.error:
        return Check("torch", "fail", f"cannot be imported: {found.error}", f"{sys.executable} -m pip install torch")
    if found.device:
        return Check("torch", "ok", f"{found.version} · {found.device}")
    driver = Path("/proc/driver/nvidia/version").exists()
    fix = "install a torch build for this driver: https://pytorch.org/get-started" if driver else None
    detail = f"{found.version} · " + (
        "sees no GPU although an NVIDIA driver is loaded" if driver else "no GPU, uses the CPU"
    )
    return Check("torch", "warn" if driver else "ok", detail, fix)


def model(name: str) -> Check:
    where = machine.find_model(name)
    if where:
        return Check("model", "ok", f"{name}: {where}")
    if name == "mini" or Path(name).expanduser().exists():
        fix = "reinstall semcache-kv" if name == "mini" else "give a folder with config.json and *.safetensors"
        return Check("model", "fail", f"{name} has no config.json with *.safetensors weights", fix)
    return Check(
        "model", "warn", f"{name} is not on this machine yet", "the daemon downloads it at its start, if it can"
    )


def embedder(name: str) -> Check:
    if name == "off":
        return Check("embedder", "ok", "off: only identical questions are answered from the cache")
    where = machine.find_embedder(name)
    if where:
        return Check("embedder", "ok", f"{name}: {where}")
    return Check(
        "embedder",
        "warn",
        f"{name} is not on this machine yet",
        "pip install 'semcache-kv[offline]', or go online once",
    )


def daemon(options: Options, paths: Paths) -> Check:
    import asyncio

    from semcache.cli.connect import connected

    async def look() -> Check:
        async with connected(options, start=False) as client:
            status = await client.status()
        served, restart = status["model"], "semcache daemon restart"
        detail = (
            f"{status['state']}, pid {status['pid']}, v{status['version']}, model {served['name']} {served['state']}"
        )
        if served["state"] == "failed":
            return Check("daemon", "fail", f"{detail}: {served['error']}", "see `semcache logs`; then " + restart)
        return (
            Check("daemon", "ok", detail)
            if status["version"] == __version__
            else Check("daemon", "warn", detail, restart)
        )

    if not options.url and not answers(paths.socket):
        if is_locked(paths.lock_file):
            return Check("daemon", "warn", "starting, or hung", "semcache logs; semcache daemon stop --force")
        return Check("daemon", "ok", "not running; `semcache ask` starts it")
    try:
        return asyncio.run(look())
    except errors.SemcacheError as error:
        return Check("daemon", "fail", error.message, "semcache daemon restart")


def leftovers(paths: Paths) -> Check:
    """Files of a daemon that was killed; the next one removes them."""
    if is_locked(paths.lock_file):
        return Check("leftovers", "ok", "none")
    stale = [str(path) for path in (paths.socket, paths.daemon_file) if path.exists() and not answers(paths.socket)]
    if stale:
        return Check("leftovers", "warn", f"from a daemon that was killed: {', '.join(stale)}", "semcache daemon start")
    return Check("leftovers", "ok", "none")
