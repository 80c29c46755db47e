"""Compiled code on disk: no folder, a damaged file or a race may stop or change a computation."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bertgeom.kernels._cpu import disk_cache

KERNELS = Path(disk_cache.__file__).parents[1]
TASK = """
import numpy as np
from bertgeom.kernels.kmers import reverse_complement
print(bytes(reverse_complement(np.frombuffer(b"AACG", np.uint8))).decode())
"""


def only_folders(cache: str | Path, temporary: Path) -> dict[str, str]:
    """The environment of a process with no other folder than these two to keep code in."""
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(cache),
        "NUMBA_CACHE_LOCATOR_CLASSES": "",
        "TMPDIR": str(temporary),
        "HOME": "/proc/none",
    }
    environment.pop("XDG_CACHE_HOME", None)
    return environment


def compiles(cache: str | Path, temporary: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A process that compiles, with no other folder than these two to keep code in."""
    environment = only_folders(cache, temporary)
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
    """One function for four kinds of arguments, whose files are damaged each in its own way."""
    cache, fourth = tmp_path / "cache", "print(add(1.5, 2.5))\n"

    def results() -> str:
        out, err = tiny(tmp_path, cache=cache, between=fourth).communicate(timeout=120)
        assert err == ""
        return str(out)

    assert results() == "4.0\n3 3.5 3.5 0\n"
    files = sorted(cache.rglob("*.nbc"))
    assert len(files) == 4
    whole = [file.read_bytes() for file in files]
    flipped = whole[2][:-1] + bytes([whole[2][-1] ^ 1])
    damaged = (b"", whole[1][:100], flipped, b"x" * len(whole[3]))
    for file, data in zip(files, damaged, strict=True):
        file.write_bytes(data)
    assert results() == "4.0\n3 3.5 3.5 0\n"
    for file in files:
        kept = file.read_bytes()
        assert hashlib.sha256(kept[32:]).digest() == kept[:32]
    assert results() == "4.0\n3 3.5 3.5 4\n"


def test_the_stamp_covers_all_folders_of_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of `attention_stats/options.py` compiles everything again."""
    import shutil

    copy = tmp_path / "kernels"
    shutil.copytree(KERNELS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(disk_cache, "__file__", str(copy / "_cpu" / "disk_cache.py"))
    stamp = disk_cache.source_stamp.__wrapped__
    assert stamp(copy) == stamp(copy)
    deep = "attention_stats/deeper/rows.py"
    (copy / deep).parent.mkdir()
    (copy / deep).write_text("ROWS = 1\n")
    # Seen from a folder next to the kernels: each of their files counts for code anywhere.
    other = tmp_path / "other"
    other.mkdir()
    paths = sorted(copy.rglob("*.py"))
    assert copy / "attention_stats" / "options.py" in paths
    assert len(paths) > 50
    for path in paths:
        before = stamp(other)
        path.write_text(path.read_text() + "\n")
        assert stamp(other) != before, path
    # The same files in other places are other code, the same tree in another place is not.
    before = stamp(copy)
    (copy / deep).rename(copy / "kmers" / "_rows.py")
    assert stamp(copy) != before
    before = stamp(copy)
    copy.rename(tmp_path / "elsewhere")
    monkeypatch.setattr(
        disk_cache, "__file__", str(tmp_path / "elsewhere" / "_cpu" / "disk_cache.py")
    )
    assert stamp(tmp_path / "elsewhere") == before


def test_another_stamp_is_another_file(tmp_path: Path) -> None:
    """What a stamp is for: stale machine code has a name that nobody asks for."""
    files = [disk_cache._Files(str(tmp_path), "f", stamp) for stamp in ("a", "b")]
    files[0].save("key", 1)
    assert [f.load("key") for f in files] == [1, None]
    assert files[0].load("another key") is None


#: A script with one small function; prints results, and how often code was found on disk.
TINY = """
import os, shutil, sys, time
from pathlib import Path
from bertgeom.kernels._cpu.runtime import jit

@jit
def add(a, b):
    return a + b

while len(sys.argv) > 1 and not Path(sys.argv[1]).exists():
    time.sleep(0.01)
print(add(1, 2), add(1.5, 2), add(1, 2.5), sum(add.stats.cache_hits.values()))
"""


def tiny(
    folder: Path, *arguments: str, cache: str | Path, before: str = "", between: str = ""
) -> Any:
    """A process that runs TINY, and something before the function and before its calls."""
    script = folder / "tiny.py"
    text = TINY.replace("@jit", before + "@jit").replace("print(", between + "print(")
    if not script.exists() or script.read_text() != text:
        script.write_text(text)
    environment = only_folders(cache, folder)
    pipe = subprocess.PIPE
    command = [sys.executable, str(script), *arguments]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


#: Root may write everywhere, unless it gives this right up.
NO_OVERRIDE = """
import ctypes
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
libc = ctypes.CDLL(None)
assert libc.capget(header, sets) == 0
sets[0] &= ~0b110
assert libc.capset(header, sets) == 0
"""


@pytest.mark.parametrize("what", ["not writable", "a file"])
def test_a_cache_folder_that_is_of_no_use_changes_no_result(tmp_path: Path, what: str) -> None:
    cache = tmp_path / "cache"
    before = NO_FOLDER
    if what == "not writable":
        cache.mkdir()
        cache.chmod(0o555)
        before += NO_OVERRIDE
    else:
        cache.write_text("")
    out, err = tiny(tmp_path, cache=cache, before=before).communicate(timeout=120)
    assert out == "3 3.5 3.5 0\n", err
    assert err.count("NUMBA_CACHE_DIR") == 1
    assert "Traceback" not in err
    assert len(list(tmp_path.glob("bertgeom-compiled-*/**/*.nbc"))) == 3


def test_without_any_folder_code_stays_in_memory_with_one_warning(tmp_path: Path) -> None:
    nowhere = NO_FOLDER + "import tempfile\ntempfile.tempdir = '/proc/none'\n"
    out, err = tiny(tmp_path, cache="/proc/none/cache", before=nowhere).communicate(timeout=120)
    assert out == "3 3.5 3.5 0\n", err
    assert err.count("NUMBA_CACHE_DIR") == 1
    assert "only in memory" in err


def test_a_cache_folder_that_vanishes_changes_no_result(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    vanish = f"add(1, 1)\nshutil.rmtree({str(cache)!r})\n"
    out, err = tiny(tmp_path, cache=cache, between=vanish).communicate(timeout=120)
    assert out == "3 3.5 3.5 0\n", err
    assert "Traceback" not in err


def test_processes_that_compile_at_once_leave_whole_code_behind(tmp_path: Path) -> None:
    cache, go = tmp_path / "cache", tmp_path / "go"
    at_once = [tiny(tmp_path, str(go), cache=cache) for _ in range(2)]
    go.touch()
    for process in at_once:
        out, err = process.communicate(timeout=120)
        assert out.startswith("3 3.5 3.5 ")
        assert err == ""
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert {path.suffix for path in files} == {".nbc"}
    # A folder in place of an entry is no reason to fail either.
    files[0].unlink()
    files[0].mkdir()
    out, err = tiny(tmp_path, cache=cache).communicate(timeout=120)
    assert out.startswith("3 3.5 3.5 ")
    assert "Traceback" not in err


def test_a_full_disk_does_not_stop_a_computation(tmp_path: Path) -> None:
    full = """
import os, tempfile
from bertgeom.kernels._cpu import disk_cache
def fails(*_, **__): raise OSError(28, "No space left on device")
disk_cache.tempfile.mkstemp = fails
"""
    done = compiles(tmp_path / "cache", tmp_path, before=full)
    assert done.stdout == "CGTT\n", done.stderr
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_environment_with_the_same_sources_finds_the_code(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for place, hits in (("one", 0), ("two", 3)):
        (tmp_path / place).mkdir()
        out, err = tiny(tmp_path / place, cache=cache).communicate(timeout=120)
        assert err == ""
        assert out == f"3 3.5 3.5 {hits}\n"
    # All in one folder; that of the kernels is empty.
    assert sorted(len(list(folder.iterdir())) for folder in cache.iterdir()) == [0, 3]


def test_without_a_variable_code_lies_in_the_cache_folder_of_the_user(tmp_path: Path) -> None:
    before = f"os.environ['XDG_CACHE_HOME'] = {str(tmp_path / 'mine')!r}\n"
    out, err = tiny(tmp_path, cache="", before=before).communicate(timeout=120)
    assert out == "3 3.5 3.5 0\n", err
    assert len(list(tmp_path.glob("mine/bertgeom/kernels-*/*.nbc"))) == 3


def test_folders_of_other_sources_are_deleted_when_they_are_old(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name, days in (("kernels-old", 40), ("kernels-new", 5), ("somebody-else", 400)):
        (cache / name).mkdir(parents=True)
        then = time.time() - days * 86400
        os.utime(cache / name, (then, then))
    out, err = tiny(tmp_path, cache=cache).communicate(timeout=120)
    assert out == "3 3.5 3.5 0\n", err
    found = {path.name for path in cache.iterdir()}
    assert {"kernels-new", "somebody-else"} < found
    assert "kernels-old" not in found


def test_compiling_is_said_once_and_only_if_it_happens(tmp_path: Path) -> None:
    before = "import logging\nlogging.basicConfig(level=logging.INFO)\n"
    for times in (1, 0):
        out, err = tiny(tmp_path, cache=tmp_path / "cache", before=before).communicate(timeout=120)
        assert out.startswith("3 3.5 3.5")
        assert err.count("compiling the CPU kernels") == times
