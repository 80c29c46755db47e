"""The classifier of the case study: batches, training, calibration, evaluation.

`settings` and `stream` make batches, `train` and `checkpoint` learn, `calibrate` and `classify`
answer, `evaluate`, `held_out` and `metrics` judge; `quiet` silences progress bars of a library.
Read `train` first. May import from: genomes and `bertgeom`.
"""
