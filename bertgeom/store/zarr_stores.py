"""Wrappers around zarr's own stores, which every file of a store passes through.

They note size and checksum of written files, compare read files with their checksums, and retry
failed requests to an object store.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING

from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from bertgeom.store.manifest import Checks
from bertgeom.store.storage import Storage, filesystem, make_way, naming, with_retries_async

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

#: Smaller files are checked at once: handing them to a thread takes longer.
_INLINE_BYTES = 2**16


class NotingStore(WrapperStore[Store]):
    """A zarr store that notes size and SHA-256 of everything that is written through it."""

    def __init__(self, store: Store, storage: Storage | None = None) -> None:
        super().__init__(store)
        self.files: dict[str, tuple[int, str]] = {}
        self._storage = storage

    async def set(self, key: str, value: Buffer) -> None:
        data = value.to_bytes()
        if self._storage is not None:
            self._storage.note(key)
            path = self._storage.folder / key if self._storage.folder else None
            if path is not None:
                make_way(path)
            with naming(path or key):
                await super().set(key, value)
        else:
            await super().set(key, value)
        self.files[key] = (len(data), hashlib.sha256(data).hexdigest())

    async def delete(self, key: str) -> None:
        await super().delete(key)
        self.files.pop(key, None)


class RetryingStore(WrapperStore[Store]):
    """A zarr store on an object store whose failed requests are retried."""

    def __init__(self, store: Store, place: str = "") -> None:
        super().__init__(store)
        self._place = place

    def _with_store(self, store: Store) -> RetryingStore:
        return RetryingStore(store, self._place)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return await with_retries_async(
            lambda: self._store.get(key, prototype, byte_range), self._place
        )

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        wanted = list(key_ranges)
        return await with_retries_async(
            lambda: self._store.get_partial_values(prototype, wanted), self._place
        )

    async def exists(self, key: str) -> bool:
        return await with_retries_async(lambda: self._store.exists(key), self._place)

    async def set(self, key: str, value: Buffer) -> None:
        await with_retries_async(lambda: self._store.set(key, value), self._place)

    async def delete(self, key: str) -> None:
        await with_retries_async(lambda: self._store.delete(key), self._place)

    async def delete_dir(self, prefix: str) -> None:
        await with_retries_async(lambda: self._store.delete_dir(prefix), self._place)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        await with_retries_async(lambda: self._store.set_if_not_exists(key, value), self._place)

    async def is_empty(self, prefix: str) -> bool:
        return await with_retries_async(lambda: self._store.is_empty(prefix), self._place)

    async def clear(self) -> None:
        await with_retries_async(self._store.clear, self._place)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        await asyncio.gather(*(self.set(key, value) for key, value in values))

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        for key, prototype, part in requests:
            yield key, await self.get(key, prototype, part)

    def list(self) -> AsyncIterator[str]:
        return self._listed(self._store.list)

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        return self._listed(lambda: self._store.list_prefix(prefix))

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        return self._listed(lambda: self._store.list_dir(prefix))

    async def _listed(self, listing: Callable[[], AsyncIterator[str]]) -> AsyncIterator[str]:
        """A complete listing; one that fails halfway is repeated."""

        async def whole() -> tuple[str, ...]:
            return tuple([name async for name in listing()])

        for name in await with_retries_async(whole, self._place):
            yield name


class CheckedStore(WrapperStore[Store]):
    """A zarr store that compares every file with the checksum it was written with.

    Raises:
        DamagedError: when a changed or missing file is read.
    """

    def __init__(self, store: Store, checks: Checks) -> None:
        super().__init__(store)
        self._checks = checks

    def _with_store(self, store: Store) -> CheckedStore:
        return type(self)(store, self._checks)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        value = await self._store.get(key, prototype)
        if value is None or len(value) < _INLINE_BYTES:
            self._check(key, value)
        else:
            await asyncio.to_thread(self._check, key, value)
        if value is None or byte_range is None:
            return value
        return await self._store.get(key, prototype, byte_range)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        for key, prototype, part in requests:
            yield key, await self.get(key, prototype, part)

    def _check(self, key: str, value: Buffer | None) -> None:
        self._checks.check(key, None if value is None else value.to_bytes())


def zarr_store(storage: Storage, read_only: bool = False) -> Store:
    """The zarr store of a folder or URL; a read-only one checks what it reads."""
    found: Store
    if storage.folder is not None:
        found = LocalStore(storage.folder, read_only=read_only)
    else:
        filesystem(storage.url)
        found = RetryingStore(FsspecStore.from_url(storage.url, read_only=read_only), storage.shown)
    return CheckedStore(found, Checks(storage)) if read_only else found
