"""Tokens: bases in, token ids out, with the bases behind every token.

`select` finds the tokenizer a model wants; `kmer`, `bases` and `huggingface` are the three kinds;
`encoded` is what each of them returns. Read `encoded` first, then `select`.
May import from: sequences, store, kernels. Knows no model.
"""
