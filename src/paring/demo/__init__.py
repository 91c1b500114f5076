"""The demo: five digit tasks, four ways to tune, all made slim and fused into one model; tables and a picture, in minutes.

compare (the flow) -> runs (in processes) of tuning (with methods, slimming), fusing, transferring; then banking (all files once
more), table and conclusions (text), picture (PNG).
"""

from paring.demo.compare import run

__all__ = ["run"]
