"""Sequences: from files, URLs and pipes to the bases of all records end to end.

`sources` opens what a user names, `alphabets` says what sequences are made of, `fasta` reads
records, `text` documents, `shards` keeps them, `windows` cuts them; `textlines` reads the lines of
small tables. Read in this order.
May import from: store. Knows no tokens and no model.
"""
