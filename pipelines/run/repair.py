"""Repair of a store: what is damaged is made again, and nothing else.

    inspect     which files are not what was written, and what they belong to
    mend        takes damaged row groups back, restores the rest from what is at hand
    then        the row groups are measured as in any run, and the store is finalised

The root says unfinished first, so that a repair may be killed and started again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from bertgeom.errors import DamagedError
from bertgeom.pipelines.context.events import Bus, Damaged
from bertgeom.pipelines.context.run_context import RunContext
from bertgeom.pipelines.run.inventory import Damage, Inspection, Kind
from bertgeom.pipelines.run.prepare import is_root_of, restore
from bertgeom.store import root_file
from bertgeom.store.storage import make_way

#: Bytes of a store up to which `run` compares all checksums, as `verify` always does.
CHECKED_WHOLE = 4 * 2**30
#: Damaged files that are named one by one.
_NAMED = 20


def mend(
    context: RunContext,
    bus: Bus,
    found: Inspection,
    inputs: Mapping[str, bytes] | None = None,
) -> None:
    """Restore what needs no measuring, and mark damaged row groups as not done.

    Args:
        inputs: what the run keeps of its inputs, by place in the store; None: not at hand.

    Raises:
        DamagedError: if something cannot be restored from here; names the remedy. Nothing
            has been changed then.
    """
    inputs = inputs or {}
    damages = [d for d in found.damages if d.kind is not Kind.ALIEN]
    if not found.of(Kind.ROOT) and not is_root_of(context):
        damages.append(Damage(root_file.METADATA, "says something else than the run", Kind.ROOT))
    if not damages:
        return
    _refuse(context, [d for d in damages if _is_beyond(context, d, inputs)])
    for damage in damages:
        _make_way(context, damage.key)
    for damage in damages[:_NAMED]:
        bus.send(Damaged(f"{context.storage.shown}: {damage}; it is restored"))
    if len(damages) > _NAMED:
        bus.send(Damaged(f"{context.storage.shown}: {len(damages) - _NAMED} more damaged files"))
    if any(damage.kind is Kind.ROOT for damage in damages):
        restore(context, [root_file.METADATA])
    elif found.complete:
        root_file.reopen(context.storage)
    for group in found.groups:
        context.folder.remove_group(group)
    # Without its record nobody would see that a chunk is damaged.
    for damage in found.of(Kind.ROW_GROUP):
        context.storage.remove(damage.key)
    if keys := [d.key for d in found.of(Kind.SET_UP)]:
        restore(context, keys)
    for damage in found.of(Kind.INPUT):
        context.storage.write(damage.key, inputs[damage.key])
    for damage in found.of(Kind.LEFTOVER):
        context.storage.remove(damage.key)
    if found.of(Kind.RUN):
        context.folder.write_run(context.facts)


def _is_beyond(context: RunContext, damage: Damage, inputs: Mapping[str, bytes]) -> bool:
    """Whether a file cannot be restored with what is at hand."""
    if damage.kind is Kind.INPUT:
        return damage.key not in inputs
    if damage.kind is Kind.SET_UP:
        constant = damage.key.partition("/")[0] in (context.facts.constants or ())
        return constant and context.encoder is None
    return damage.kind is Kind.SEQUENCES


def _make_way(context: RunContext, key: str) -> None:
    """An empty folder in the place of a file goes; anything else there is somebody's.

    Raises:
        DamagedError: names what is in the way.
    """
    root = context.storage.folder
    if root is None:
        return
    path = root / key
    parents = [p for p in path.parents if p != root and p.is_relative_to(root)]
    found = next((p for p in parents if os.path.lexists(p) and not p.is_dir()), path)
    if found is path:
        make_way(path)
        if not path.is_dir():
            return
    what = "a file of the store" if found is path else "a folder of the store"
    other = "a folder with other contents" if found is path else "a file"
    raise DamagedError(
        f"{found}: expected {what}, found {other}; move it away and give the same command again"
    )


def _refuse(context: RunContext, damages: list[Damage]) -> None:
    if not damages:
        return
    first, more = damages[0], len(damages) - 1
    raise DamagedError(
        f"{context.storage.shown}: {first}{f' (and {more} more)' if more else ''}; the bertgeom "
        "run command of this store, given again, restores it from its sources"
    )
