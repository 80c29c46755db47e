"""Genomes of the case study: the lineages, their simulated diversity, and the spike gene.

`lineages` has the classes, `simulate` draws genomes around them, `spike` cuts the gene, `domains`
places its protein domains, `fasta` writes files. Read `lineages` first.
May import from: `bertgeom`.
"""
