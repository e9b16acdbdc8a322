"""Folders that cannot be a data directory are refused with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from semcache.errors import StoreError
from semcache.store.datadir import DataDir, filesystem_type, refuse_network

MOUNTS = """\
/dev/vda / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
tmpfs /home/alice/fast tmpfs rw 0 0
//win/share /mnt/with\\040blank cifs rw 0 0
host: /mnt/ssh fuse.sshfs rw 0 0
malformed
host /mnt/9p 9p rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/x", "ext4"), ("/home/bob/data", "nfs4"), ("/home", "nfs4"), ("/homework", "ext4"),
        ("/home/alice/fast/data", "tmpfs"), ("/mnt/with blank/x", "cifs"), ("/mnt/ssh/x", "fuse.sshfs"),
        ("/mnt/9p", "9p"),
    ],
)  # fmt: skip
def test_the_deepest_mount_decides(path: str, kind: str) -> None:
    assert filesystem_type(Path(path), MOUNTS) == kind


@pytest.mark.parametrize("path", ["/home/bob", "/mnt/with blank/x", "/mnt/ssh/x"])
def test_a_network_filesystem_is_refused_with_the_fix(path: str) -> None:
    with pytest.raises(StoreError, match=r"network filesystem .* set SEMCACHE_HOME"):
        refuse_network(Path(path), MOUNTS)


@pytest.mark.parametrize("path", ["/var/x", "/home/alice/fast", "/mnt/9p/x"])
def test_a_local_one_is_fine(path: str) -> None:
    refuse_network(Path(path), MOUNTS)
    refuse_network(Path(path), "")


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError) as caught:
        DataDir(tmp_path / "file" / "data")
    assert "\n" not in str(caught.value)
    assert "SEMCACHE_HOME" in str(caught.value)


def test_how_it_ended_is_known_to_the_next_owner(tmp_path: Path) -> None:
    for state in ("clean", "killed", "damaged", "clean"):
        owner = DataDir(tmp_path)
        owner.release(state)
        owner.release("clean")  # too late to say more
        following = DataDir(tmp_path)
        assert following.last_run == state
        following.release("clean")
