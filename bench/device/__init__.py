"""Everything that a GPU is asked, in one command: `python -m bench.device --out FOLDER`.

Works from a bare checkout: nothing is installed, and zarr, xarray, dask, dnaio and git may be
missing. `__main__` lists the steps in their order; `device.json` is written after every one of
them, and a second call with the same folder goes on where the first ended. Read `steps` first.
Imports `bertgeom` through `namespace` alone.
"""
