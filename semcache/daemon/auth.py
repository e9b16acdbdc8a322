"""Who is asking: kernel peer credentials on the Unix socket. A request may only select a sub-user of its principal."""

from __future__ import annotations

import re
import socket
import struct
from asyncio import Transport
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from semcache.errors import AuthError, UsageError

_SUB_USER = re.compile(r"[A-Za-z0-9._-]{1,64}")


class PeerProtocol(H11Protocol):
    """uvicorn's HTTP protocol that notes the uid of the process at the other end of a Unix socket."""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        uid = peer_uid(transport.get_extra_info("socket"))
        # A new dictionary: the server shares one between connections.
        self.app_state = {**self.app_state, "peer_uid": uid}


def peer_uid(connection: Any) -> int | None:
    """The kernel's word for who holds the other end; None where there is none (TCP)."""
    if connection is None or connection.family != socket.AF_UNIX:
        return None
    size = struct.calcsize("3i")
    _pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(uid)


def principal(state: dict[str, Any]) -> str:
    """The canonical id of the caller, `os:<uid>`; AuthError when the transport does not say."""
    uid = state.get("peer_uid")
    if uid is None:
        raise AuthError("this connection carries no identity; use the Unix socket")
    return f"os:{uid}"


def canonical_user(caller: str, selected: str | None) -> str:
    """`selected` as a sub-user of `caller`; names cannot reach another principal."""
    if selected is None or selected in ("", caller):
        return caller
    name = selected.removeprefix(f"{caller}/")
    if not _SUB_USER.fullmatch(name) or name in (".", ".."):
        raise UsageError(
            f"user {selected!r} is not a valid name of a sub-user of {caller}: "
            "1 to 64 letters, digits, '.', '_' or '-'",
            param="user",
        )
    return f"{caller}/{name}"
