"""Sequences: from files, URLs and pipes to the bases of all records end to end.

`sources` opens what a user names, `fasta` reads records, `shards` keeps them, `windows` cuts them;
`textlines` reads the lines of small text files. Read in this order.
May import from: store. Knows no tokens and no model.
"""
