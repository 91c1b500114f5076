"""SliceFine: train thin, moving slices of the pretrained weights, in place.

slices (geometry) -> config, schedules (step -> slices) -> kinds, ops (autograd) -> targets, inject -> session.
"""
