"""Merging with rows: how much of each task vector goes into a merge, found by scores of all tasks on calibration rows.

held (what each task changes, as a merge method reads it) -> merging (a merge in place, on models that share a body) ->
coefficients (which numbers are searched, and what they are called in a configuration) -> objective (scores of all tasks as
one number) -> searched (CMA-ES over them) -> fitting (the merged values themselves, by gradients). No file is read here.

It is no part of ``paring.fuse``, which knows tensors and files and runs no model; what is found here is written by it.
"""
