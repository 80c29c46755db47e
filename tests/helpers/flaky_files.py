"""An object store in memory that counts what it is asked and fails as it is told."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import register_implementation

PROTOCOL = "flaky"


class Faults:
    """What fails: a share of all calls, and every call after the first `sound` ones.

    Attributes:
        calls: by name of the method; share: of calls that fail, half of them after their effect.
        sound: None: no call is refused for good.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), threading.local()
        self.reset()

    def reset(self, share: float = 0.0, sound: int | None = None, seed: int = 0) -> None:
        self.calls: Counter[str] = Counter()
        self.share, self.sound, self.failed = share, sound, 0
        self._random = random.Random(seed)

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            # A listing that answers whether a file exists is one call of a client.
            if getattr(self._inside, "busy", False):
                return call(*args, **options)
            before, after = self._next(name)
            if before:
                raise ConnectionResetError("the place hung up: https://me:s3cr3t@host/x?sig=s3cr3t")
            self._inside.busy = True
            try:
                answer = call(*args, **options)
            finally:
                self._inside.busy = False
            if after:
                raise TimeoutError("no answer in time")
            return answer

        return counted

    def _next(self, name: str) -> tuple[bool, bool]:
        with self._lock:
            self.calls[name] += 1
            if self.sound is not None and self.calls.total() > self.sound:
                self.failed += 1
                return True, False
            drawn = self._random.random()
            self.failed += drawn < self.share
            return drawn < self.share / 2, self.share / 2 <= drawn < self.share


FAULTS = Faults()
_ASKED = ("cat_file", "pipe_file", "ls", "info", "exists", "isdir", "isfile", "find", "rm", "_open")


class FlakyFileSystem(MemoryFileSystem):
    """`flaky://bucket/...`; all instances share their files, as those of fsspec's own memory."""

    protocol = PROTOCOL
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in _ASKED:
            setattr(self, name, FAULTS.around(name, getattr(self, name)))

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace(f"{PROTOCOL}://", "memory://", 1))


register_implementation(PROTOCOL, FlakyFileSystem, clobber=True)


def contents(url: str) -> dict[str, bytes]:
    """Every file of a store but the one with a clock in it."""
    root = FlakyFileSystem._strip_protocol(url) + "/"
    return {
        path.removeprefix(root): file.getvalue()
        for path, file in FlakyFileSystem.store.items()
        if path.startswith(root) and not path.endswith("history.jsonl")
    }
