"""The right to write where no file can be locked: a small object with an owner and a time.

    owner      writes it where none is (a conditional create), renews it while at work,
               deletes it at the end
    others     refuse while it is fresh, and take it over when it was not renewed in time

The clocks of the machines must agree within a minute.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from bertgeom.errors import StoreError
from bertgeom.store.storage import Storage

LEASE = "lease.json"
#: A lease that was not renewed for this many seconds is void.
STALE_SECONDS = 300.0
_RENEW_SECONDS = 30.0
#: Two processes that write at once without a conditional create, or take over the same lease,
#: see each other after this pause.
_SETTLE_SECONDS = 2.0


#: Leases that this process holds now.
_held: set[str] = set()


@dataclass(frozen=True)
class Owner:
    """Who holds a lease, and when it was renewed last (seconds since 1970)."""

    owner: str
    host: str
    process: int
    time: float


@contextmanager
def lease(storage: Storage, key: str) -> Iterator[None]:
    """Hold the lease `key` of a place while the block works.

    Raises:
        StoreError: if another process holds it, or took it over while the block was at work.
    """
    mine = Owner(uuid.uuid4().hex, socket.gethostname(), os.getpid(), time.time())
    plain = Storage(storage.url)
    _take(plain, key, mine)
    _held.add(mine.owner)
    stop, lost = threading.Event(), threading.Event()
    renewal = threading.Thread(
        target=_renew, args=(plain, key, mine, stop, lost), name="bertgeom-lease", daemon=True
    )
    renewal.start()
    try:
        yield
        if lost.is_set():
            raise StoreError(
                f"{storage.shown}: expected to hold {key} until the end, found it taken over by "
                "another process; give the same command again when that one has finished"
            )
    finally:
        stop.set()
        renewal.join()
        _held.discard(mine.owner)
        with suppress(Exception):
            if _holder(plain, key) == mine.owner:
                plain.remove(key)


def _take(storage: Storage, key: str, mine: Owner) -> None:
    sure = _create(storage, key, mine)
    if sure is False:
        known = _read(storage, key)
        if known is not None and not _is_void(known):
            raise _held_by(storage, key, known)
        storage.remove(key)
        sure = None if _create(storage, key, mine) else False
    if sure is None:
        time.sleep(_SETTLE_SECONDS)
    known = _read(storage, key)
    if known is None or known.owner != mine.owner:
        raise _held_by(storage, key, known)


def _create(storage: Storage, key: str, mine: Owner) -> bool | None:
    """Write the lease where none is: True if done, False if one is there, None if unsure."""
    data = json.dumps(asdict(mine)).encode()
    try:
        return storage.create(key, data)
    except NotImplementedError:
        if storage.exists(key):
            return False
        storage.write(key, data)
        return None


def _renew(
    storage: Storage, key: str, mine: Owner, stop: threading.Event, lost: threading.Event
) -> None:
    while not stop.wait(_RENEW_SECONDS):
        # A place that does not answer is met by the work itself, which says so.
        with suppress(Exception):
            if _holder(storage, key) != mine.owner:
                lost.set()
                return
            now = {**asdict(mine), "time": time.time()}
            storage.write(key, json.dumps(now).encode())


def _read(storage: Storage, key: str) -> Owner | None:
    """The lease that lies there, None if there is none or it is unreadable."""
    try:
        facts: dict[str, Any] = json.loads(storage.read(key))
        return Owner(
            str(facts["owner"]), str(facts["host"]), int(facts["process"]), float(facts["time"])
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _holder(storage: Storage, key: str) -> str | None:
    known = _read(storage, key)
    return None if known is None else known.owner


def _is_void(known: Owner) -> bool:
    """Whether its owner is gone."""
    if time.time() - known.time > STALE_SECONDS:
        return True
    if known.host != socket.gethostname():
        return False
    if known.process == os.getpid():
        # Of an attempt of this very process, whose place did not answer at its end.
        return known.owner not in _held
    try:
        os.kill(known.process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _held_by(storage: Storage, key: str, known: Owner | None) -> StoreError:
    who = f" (process {known.process} on {known.host})" if known is not None else ""
    return StoreError(
        f"{storage.shown}: expected to be the only one at work on this store, found another one at "
        f"work{who}; wait for it, or, if it was killed, for {STALE_SECONDS / 60:.0f} minutes, "
        f"after which its {key} is void"
    )
