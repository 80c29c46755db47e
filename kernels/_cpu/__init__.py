"""What the compiled CPU code of all operations shares.

`runtime` compiles, keeps code on disk (`disk_cache`) and calls torch's threads and BLAS; `vectors`
are intrinsics; `amx` multiplies on the tile unit; `rows` and `cones` are loops that operations
share. Read `runtime` first. May import from: nothing but each other.
"""
