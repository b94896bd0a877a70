"""NVFlare as a carrier of opaque bytes: cells of its CellNet over gRPC with mutual TLS; nothing else of it runs.

The only place that imports nvflare, limited to the versions that the tests ran with; `private` names what NVFlare does
not document. A stock NVFlare client runs jobs that the server sends. fedveil starts no NVFlare client and no server:
the coordinator has a cell that listens (`carrier`), each hospital's node one that connects to it (`node`), and a cell
hands over messages of a single kind, as bytes (`cell`), after checks that come before any of NVFlare's own handlers.
"""

import os

__all__ = ["ANSWER", "ASK", "FAILED", "LONGEST", "VERSIONS"]

VERSIONS = ((2, 9), (2, 9))
"""The first and the last version of NVFlare that the tests ran with."""

ASK, ANSWER, FAILED = "ask", "answer", "failed"
"""The topics: bytes for the site service, its answer's bytes, and why there is none."""

LONGEST = 2**29
"""Bytes of the longest message; gRPC refuses longer ones before it reads them."""

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else a line on stderr for each stranger who connects
