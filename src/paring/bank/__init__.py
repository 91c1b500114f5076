"""One base in memory, many deltas beside it, and an exact swap from one to another."""

from paring.bank.bank import Bank, find_deltas
from paring.bank.lock import BankBusy

__all__ = ["Bank", "BankBusy", "find_deltas"]
