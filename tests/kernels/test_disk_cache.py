"""Compiled code on disk: no folder, a damaged file or a race may stop or change a computation."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bertgeom.kernels import _disk_cache

KERNELS = Path(_disk_cache.__file__).parent
TASK = """
import numpy as np
from bertgeom.kernels.kmers import reverse_complement
print(bytes(reverse_complement(np.frombuffer(b"AACG", np.uint8))).decode())
"""


def compiles(cache: str | Path, temporary: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A process that compiles, with no other folder than these two to keep code in."""
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(cache),
        "NUMBA_CACHE_LOCATOR_CLASSES": "",
        "TMPDIR": str(temporary),
        "HOME": "/proc/none",
    }
    environment.pop("XDG_CACHE_HOME", None)
    code = more.get("before", "") + TASK
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )


#: As in a read-only installation: no folder but the last resort will do.
NO_FOLDER = """
from numba.core import caching
for name in ("InTreeCacheLocator", "UserWideCacheLocator"):
    setattr(getattr(caching, name), "from_function", classmethod(lambda *_: None))
"""


def test_without_a_folder_code_goes_to_a_private_one_with_one_warning(tmp_path: Path) -> None:
    done = compiles("/proc/none/cache", tmp_path, before=NO_FOLDER)
    assert done.stdout == "CGTT\n", done.stderr
    assert done.stderr.count("NUMBA_CACHE_DIR") == 1
    (made,) = tmp_path.glob("bertgeom-compiled-*")
    assert made.stat().st_mode & 0o077 == 0
    assert list(made.rglob("*.nbc"))


def test_a_private_folder_that_others_could_write_to_is_not_used(tmp_path: Path) -> None:
    theirs = tmp_path / f"bertgeom-compiled-{os.getuid()}"
    theirs.mkdir()
    theirs.chmod(0o777)
    done = compiles("/proc/none/cache", tmp_path, before=NO_FOLDER)
    assert done.stdout == "CGTT\n", done.stderr
    assert not list(theirs.iterdir())


def test_damaged_code_is_compiled_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert compiles(cache, tmp_path).stdout == "CGTT\n"
    (file,) = cache.rglob("*reverse_complement*.nbc")
    whole = file.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1] + bytes([whole[-1] ^ 1]), b"x" * len(whole)):
        file.write_bytes(damaged)
        done = compiles(cache, tmp_path)
        assert (done.stdout, done.stderr) == ("CGTT\n", "")
        kept = file.read_bytes()
        assert hashlib.sha256(kept[32:]).digest() == kept[:32]


def test_the_stamp_covers_all_folders_of_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of `attention_stats/_options.py` compiles everything again."""
    import shutil

    copy = tmp_path / "kernels"
    shutil.copytree(KERNELS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(_disk_cache, "__file__", str(copy / "_disk_cache.py"))
    stamp = _disk_cache.source_stamp.__wrapped__
    before = stamp(copy)
    assert stamp(copy) == before
    for path in ("attention_stats/_options.py", "kmers/alphabet.py", "_amx.py"):
        (copy / path).write_text((copy / path).read_text() + "\n")
        assert stamp(copy) != before, path
        before = stamp(copy)


def test_a_full_disk_does_not_stop_a_computation(tmp_path: Path) -> None:
    full = """
import os, tempfile
from bertgeom.kernels import _disk_cache
def fails(*_, **__): raise OSError(28, "No space left on device")
_disk_cache.tempfile.mkstemp = fails
"""
    done = compiles(tmp_path / "cache", tmp_path, before=full)
    assert done.stdout == "CGTT\n", done.stderr
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
