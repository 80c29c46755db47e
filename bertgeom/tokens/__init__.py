"""Tokens: bases in, token ids out, with the bases of every token.

`select` finds the tokenizer that a model needs; `kmer`, `bases` and `huggingface` are the three
kinds; `encoded` is what each of them returns, `coverage` what it makes of an
input. Read `encoded` first, then `select`. May import from: sequences, store, kernels. Knows no
model.
"""
