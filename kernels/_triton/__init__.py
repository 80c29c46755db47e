"""What the Triton kernels of all operations share.

`rules` holds for every kernel. `rows` reads rows and `angles` multiplies tiles; `row_launches` and
`angle_launches` start their kernels on sets of vectors. `shipped` lists every configuration.
Read `rules` first. May import from: nothing but each other.
"""
