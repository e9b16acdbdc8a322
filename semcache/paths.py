"""Where things live on this machine. Knows nothing about what is inside the files."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from semcache.errors import ConfigError

# `sun_path` holds 108 bytes on Linux and 104 on macOS, the closing NUL included.
MAX_SOCKET_PATH_BYTES = 103


@dataclass(frozen=True)
class Paths:
    """Every folder and file that semcache touches outside its own package."""

    config_dir: Path
    data_dir: Path
    state_dir: Path
    runtime_dir: Path
    socket_override: Path | None = None

    @property
    def config_file(self) -> Path:
        return self.config_dir / "config.toml"

    @property
    def database(self) -> Path:
        return self.data_dir / "semcache.db"

    @property
    def log_file(self) -> Path:
        return self.state_dir / "log" / "daemon.log"

    @property
    def runs_dir(self) -> Path:
        return self.state_dir / "runs"

    @property
    def socket(self) -> Path:
        return self.socket_override or self.runtime_dir / "api.sock"

    @property
    def lock_file(self) -> Path:
        return self.runtime_dir / "daemon.lock"

    @property
    def daemon_file(self) -> Path:
        return self.runtime_dir / "daemon.json"

    @staticmethod
    def resolve(*, socket: Path | None = None) -> Paths:
        """The folders of this user, or of `SEMCACHE_HOME` where that is set."""
        home = os.environ.get("SEMCACHE_HOME")
        if home:
            root = Path(home).expanduser().absolute()
            runtime = _short_runtime_dir(root / "run")
            return Paths(root / "config", root / "data", root / "state", runtime, socket)
        import platformdirs  # deferred: the CLI pays for it only where no SEMCACHE_HOME is set

        dirs = platformdirs.PlatformDirs("semcache", appauthor=False)
        return Paths(
            dirs.user_config_path, dirs.user_data_path, dirs.user_state_path,
            _short_runtime_dir(dirs.user_runtime_path), socket,
        )  # fmt: skip


def _short_runtime_dir(wanted: Path) -> Path:
    """`wanted`, or a private folder named after it in the temporary folder when its socket path would be too long."""
    if len(os.fsencode(wanted / "api.sock")) <= MAX_SOCKET_PATH_BYTES:
        return wanted
    digest = hashlib.sha256(os.fsencode(wanted)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"semcache-{os.getuid()}-{digest}"


def check_socket_path(path: Path) -> None:
    """Raise ConfigError when the kernel cannot bind or connect a socket at `path`."""
    num_bytes = len(os.fsencode(path))
    if num_bytes > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"socket path is {num_bytes} bytes long, the kernel allows {MAX_SOCKET_PATH_BYTES}: {path}; "
            "choose a shorter one with --socket PATH or SEMCACHE_HOME"
        )


def make_private_dir(path: Path) -> None:
    """Create `path` with mode 0700 and refuse one that belongs to somebody else.

    The temporary folder is writable by everybody, so an existing runtime folder is trusted only when it is
    a real folder of this user.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
            raise ConfigError(f"{path} is not a folder of this user; remove it or set SEMCACHE_HOME to another folder")
        if stat.S_IMODE(info.st_mode) & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"cannot use folder {path}: {error.strerror}; fix its permissions or set SEMCACHE_HOME"
        ) from error
