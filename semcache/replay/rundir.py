"""The folder of one run: `requests.jsonl` as it happens, `summary.json`, `requests.csv` and `run.toml` at the end.

`requests.jsonl` is append-only and flushed per request, so a run that was killed can be resumed from it.
"""

from __future__ import annotations

import csv
import json
import platform
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from semcache import __version__
from semcache.errors import NotFoundError, StoreError, UsageError
from semcache.replay.record import RequestRecord

REQUESTS, SUMMARY, TABLE, OPTIONS = "requests.jsonl", "summary.json", "requests.csv", "run.toml"


class RunDir:
    """An open run directory; close it when the run is over."""

    def __init__(self, path: Path, records: list[RequestRecord]) -> None:
        self.path = path
        self.records = records  # of the whole run, earlier sessions included
        # A lone surrogate in an answer becomes an escape such as \udc80, which is how JSON itself writes it.
        self._log = (path / REQUESTS).open("a", encoding="utf-8", errors="backslashreplace")

    @staticmethod
    def create(path: Path) -> RunDir:
        """A new run; a folder that already holds one is refused."""
        if (path / REQUESTS).exists() or (path / SUMMARY).exists():
            raise UsageError(f"{path} already holds a run; continue it with --resume {path}, or name another folder")
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            return RunDir(path, [])
        except OSError as error:
            raise UsageError(f"cannot write the run to {path}: {error.strerror}", param="out") from error

    @staticmethod
    def resume(path: Path) -> RunDir:
        """A run that was interrupted; a last line that was cut off by a crash is dropped."""
        log = path / REQUESTS
        try:
            raw = log.read_bytes()
            whole = raw[: raw.rfind(b"\n") + 1]
            if len(whole) < len(raw):
                with log.open("r+b") as file:
                    file.truncate(len(whole))
            records = [RequestRecord.from_json(line) for line in whole.decode().split("\n") if line]
        except FileNotFoundError as error:
            raise NotFoundError(f"{path} holds no {REQUESTS}; nothing to resume") from error
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"cannot resume {path}: {log.name} is not readable: {error}") from error
        return RunDir(path, records)

    def append(self, record: RequestRecord) -> None:
        with _writing(self.path):
            self._log.write(record.to_json() + "\n")
            self._log.flush()
        self.records.append(record)

    def latest(self) -> dict[tuple[str, str | None, int, int], RequestRecord]:
        """The newest record of every request: one that failed may have been asked again by --resume."""
        return {record.key: record for record in self.records}

    def save(self, summaries: Sequence[Mapping[str, Any]]) -> None:
        """Everything that is made from the records."""
        rows = [record.to_row() for record in self.latest().values()]
        with _writing(self.path):
            _write(self.path / SUMMARY, json.dumps(one_or_list(summaries), ensure_ascii=False, indent=2) + "\n")
            with (self.path / TABLE).open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]) if rows else [])
                writer.writeheader()
                writer.writerows(rows)

    def save_options(self, sections: Mapping[str, Mapping[str, Any]]) -> None:
        """`run.toml`, before the first request: what it takes to run this again, and to resume it."""
        versions = {"semcache": __version__, "python": platform.python_version(), "platform": platform.platform()}
        parts = {**sections, "versions": versions}
        with _writing(self.path):
            _write(self.path / OPTIONS, "\n".join(f"[{name}]\n{_toml(part)}" for name, part in parts.items()))

    def close(self) -> None:
        self._log.close()


def saved_options(path: Path) -> dict[str, Any]:
    """The `run.toml` of an earlier run."""
    try:
        return tomllib.loads((path / OPTIONS).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} holds no {OPTIONS}; nothing to resume") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot resume {path}: {OPTIONS} is not readable: {error}") from error


def one_or_list(summaries: Sequence[Mapping[str, Any]]) -> Any:
    """One combination is its summary, several are a list."""
    return summaries[0] if len(summaries) == 1 else list(summaries)


def new_path(runs_dir: Path, dataset_name: str, now: datetime) -> Path:
    """`2026-11-20T11-07-31_trivia`, with a number behind it when that is taken."""
    safe = "".join(char if char.isalnum() or char in "-_." else "_" for char in dataset_name)
    base = f"{now:%Y-%m-%dT%H-%M-%S}_{safe}"
    names = (base if number == 1 else f"{base}-{number}" for number in range(1, 10_000))
    return next(runs_dir / name for name in names if not (runs_dir / name).exists())


def find_run(name: str, runs_dir: Path) -> Path:
    """A run by its path, by its name among the saved runs, or the `last` one."""
    saved = sorted(path.parent for path in runs_dir.glob(f"*/{REQUESTS}"))
    if name == "last" and saved:
        return saved[-1]
    for path in (Path(name).expanduser(), runs_dir / name):
        if path.is_dir():
            return path
    known = ", ".join(path.name for path in saved[-5:]) or "none yet"
    raise NotFoundError(f"no run {name!r}; newest in {runs_dir}: {known}")


def load_summaries(path: Path) -> list[dict[str, Any]]:
    """The summaries of a finished run."""
    try:
        value = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} holds no {SUMMARY}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path / SUMMARY}: {error}") from error
    return value if isinstance(value, list) else [value]


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write the run to {path}: {error.strerror}") from error


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _toml(section: Mapping[str, Any]) -> str:
    """Key and value lines; None is left out, because TOML has no word for it."""
    return "".join(f"{name} = {_toml_value(value)}\n" for name, value in section.items() if value is not None)


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_toml_value(name)} = {_toml_value(item)}" for name, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    # A TOML basic string is a JSON string, except that it also wants DEL escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
