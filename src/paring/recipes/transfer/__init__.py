"""What ``paring transfer`` does: settings -> rows, originals -> problem (models that share one body, scores) -> methods -> run.

The path, the scores and the joint search are in ``paring.transfer``; here are files, models and what is printed and written.
"""
