"""What the Triton kernels of all operations share.

`rules` are kept by every kernel, `rows` reads rows, `angles` multiplies tiles, `shipped` lists
every configuration. Read `rules` first. May import from: nothing but each other.
"""
