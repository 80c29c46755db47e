"""The store: named arrays in Zarr, named bytes beside them, and a checksum for every byte.

`layout` says which arrays there are and `zarr_io` reads and writes them, through the wrappers of
`zarr_stores`; only these two touch zarr. `storage` is a folder or a URL, `manifest` and `journal`
note what was written, `dataset` gives statistics as xarray, `files` writes small results. Read
`layout` first.
May import from: `bertgeom.variables` and the modules beside it. Knows no sequences and no model.
"""
