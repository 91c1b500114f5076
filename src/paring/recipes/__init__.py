"""What ``paring tune`` does: settings -> data -> model -> inputs -> run -> report. Needs the extra ``train``."""
