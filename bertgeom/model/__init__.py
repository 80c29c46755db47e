"""Models: load an encoder, run batches, record what its attention and its layers do.

`attention` registers the attention implementation and holds `record`; `recorder` collects the
statistics of a forward pass; `architectures` declares where layers and stream are; `masks`,
`observed` and `probe` find out what a model does; `loading` reads weights, `encoder` measures
batches, `capture` keeps queries, keys and values; `packages` imports those that register models.
Read `encoder` first, then `attention` and `recorder`. May import from: tokens, store, kernels.
"""
