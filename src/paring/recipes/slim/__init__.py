"""What ``paring slim`` does: settings -> problem (model, data, scores) -> methods (what is tried) -> run -> report.

One delta (``run``) or many of one base into a bank (``many``); with data or without. Scores need the extra ``train``.
"""
