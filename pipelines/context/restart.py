"""A run that was set up and has no result yet: its set-up binds nobody.

The next run, of whatever model and settings, is set up as in a new place. What the first one has
made, as its `run.json` lists it, is deleted; where anything else lies, nothing is.
"""

from __future__ import annotations

from bertgeom.errors import StoreError
from bertgeom.pipelines.context.claims import LEASES, LOCKS
from bertgeom.pipelines.context.folder import (
    ANNOTATIONS,
    HISTORY,
    INPUT,
    LABELS,
    RUN,
    WINDOWS,
    RunFolder,
)
from bertgeom.pipelines.context.run_context import SEQUENCES
from bertgeom.store import manifest, root_file
from bertgeom.store.journal import DRAFT
from bertgeom.store.manifest import FOLDER
from bertgeom.store.storage import Storage
from bertgeom.store.zarr_io import create_root

_BOOKKEEPING = {f"{FOLDER}/{name}" for name in (RUN, LABELS, ANNOTATIONS, WINDOWS, INPUT)}
_KEPT = {
    f"{FOLDER}/{HISTORY}",
    LOCKS[root_file.FORMAT],
    LEASES[root_file.FORMAT],
    root_file.METADATA,
}
_KEPT |= {f"{FOLDER}/{root_file.METADATA}"}


def forget_unstarted(storage: Storage) -> bool:
    """Take a set-up without results back; whether there was one. Only while the place is claimed.

    Sequence shards stay: they are compared with the sources.
    """
    made = _made_by_set_up(storage)
    if made is None:
        return False
    for top in sorted({key.partition("/")[0] for key in made} - {FOLDER}):
        storage.remove(top)
    for key in sorted(_BOOKKEEPING - {f"{FOLDER}/{RUN}"}):
        storage.remove(key)
    # Killed here, the place still counts as a run that was set up.
    storage.remove(root_file.METADATA)
    create_root(storage)
    storage.remove(f"{FOLDER}/{RUN}")
    return True


def _made_by_set_up(storage: Storage) -> set[str] | None:
    """Files that the set-up has made, None if the run has begun or other files lie there."""
    folder = RunFolder(storage)
    try:
        facts = folder.read_run()
        there = storage.exists(root_file.METADATA)
        root = root_file.check_format(storage, root_file.FORMAT) if there else {}
    except StoreError:
        return None
    if facts is None or facts.files is None or root.get("complete"):
        return None
    if folder.spooled() or folder.written_groups() or storage.exists(manifest.KEY):
        return None
    made = {*facts.files} - _KEPT
    shards = f"{SEQUENCES}/" if facts.sequences is None else None
    others = storage.sizes().keys() - made - _BOOKKEEPING - _KEPT
    left = [k for k in others if not DRAFT.fullmatch(k.rpartition("/")[2])]
    return None if any(shards is None or not k.startswith(shards) for k in left) else made
