"""What every attention head and every layer of an encoder does on a whole genome database.

    import bertgeom

    bertgeom.run("genomes.fasta", model="model/", out="run.zarr")
    dataset = bertgeom.open("run.zarr")

    geometry = bertgeom.measure(model, input_ids=ids, attention_mask=mask)

    with bertgeom.record() as recorder:  # a model loaded with attn_implementation="bertgeom"
        model(**batch)
    geometry = recorder.dataset()

Importing the package loads neither torch nor transformers. The attention implementation
"bertgeom" is registered as soon as both are there, in either order of the imports.
"""

import importlib
import logging
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

from bertgeom._version import __version__

_HOME = {
    "load_encoder": "model.encoder",
    "load_model": "model.loading",
    "measure": "model.encoder",
    "record": "model.attention",
    "open": "store.zarr_io",
    "register_architecture": "model.architectures",
    "run": "pipelines.run.stages",
}

__all__ = ["__version__", *sorted(_HOME)]


# A library keeps silent until the program that uses it asks for its log records.
logging.getLogger("bertgeom").addHandler(logging.NullHandler())


def _register_attention(_: Any) -> None:
    importlib.import_module("bertgeom.model.attention")


def _watch_transformers() -> None:
    from wrapt import when_imported

    when_imported("transformers.modeling_utils")(_register_attention)


class _WaitForTransformers(MetaPathFinder):
    """Finds nothing, but sees that transformers is imported; wrapt waits until then.

    Importing wrapt takes as long as a quarter of `bertgeom --help`. The finder stays in the list:
    removing one while Python goes through it would skip the next.
    """

    waits = True

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        if self.waits and fullname == "transformers":
            self.waits = False
            _watch_transformers()


if "transformers" in sys.modules:
    _watch_transformers()
else:
    sys.meta_path.insert(0, _WaitForTransformers())


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
