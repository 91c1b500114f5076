"""Figures of probes: a module a kind, with ``figure(record, tables)``. matplotlib is loaded here alone; no number is made."""
