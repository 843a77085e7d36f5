"""Secure aggregation: the sum of many vectors, and no single one. Sans-I/O: bytes in, bytes out."""

from .client import RevealLedger, SecAggClient, Stage
from .server import SecAggResult, SecAggServer, ServerStage
from .session import Floor, SecAggConfig

__all__ = [
    "Floor",
    "RevealLedger",
    "SecAggClient",
    "SecAggConfig",
    "SecAggResult",
    "SecAggServer",
    "ServerStage",
    "Stage",
]
