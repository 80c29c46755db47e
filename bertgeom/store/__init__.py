"""The store: arrays in Zarr, other files next to them, and a checksum for every file.

`layout` says which arrays there are and `zarr_io` reads and writes them, through the wrappers of
`zarr_stores`; only these two touch zarr. `root_file` is the JSON file at the root, which says what
a store is and how far: commands that need no array read it without zarr. `storage` is a folder or a
URL, `manifest` and `journal` note what was written, `dataset` gives statistics as xarray, `files`
writes small results. Read `layout` first.
May import from: `bertgeom.variables` and modules of this folder. Knows no sequences and no model.
"""
