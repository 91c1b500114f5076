"""The demo: five digit tasks, four ways to tune, one table and one picture, in about two minutes on two cores.

compare (the flow) -> methods (how each way tunes), table (text), picture (PNG).
"""

from paring.demo.compare import run

__all__ = ["run"]
