"""gunicorn's settings, in production and in `make run`; most of them come from config.py."""

import gc
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

# In a subprocess, so that the master, from which the workers are forked, never imports the application, and a reload
# (SIGHUP) picks up new code. A setting that makes no sense stops the start here, and not in each worker.
_loaded = subprocess.run(
    [sys.executable, "-m", "config"], cwd=Path(__file__).parent, stdout=subprocess.PIPE, check=False
)
if _loaded.returncode:
    sys.exit(_loaded.returncode)
_settings = json.loads(_loaded.stdout)
# Else a name server that doesn't answer holds a request for longer than PostgreSQL may. glibc reads it.
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:2")
_max_open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)

worker_class = "worker.Worker"
bind = f"127.0.0.1:{_settings['PORT']}"
workers = _settings["WEB_CONCURRENCY"]
threads = _settings["THREADS"]
# A worker that runs out of files ends. Besides its clients it has a connection to PostgreSQL for each thread.
worker_connections = max(threads + 1, min(1000, _max_open_files - threads - 64))
keepalive = 75  # longer than a proxy keeps idle connections, else it sends into one that was just closed: a 502
accesslog = None  # logs.py writes a line for each request
logconfig_dict = _settings["logging"]
loglevel = logconfig_dict["loggers"]["gunicorn.error"]["level"]
statsd_host = _settings["STATSD_HOST"]
statsd_prefix = "igris"
control_socket_disable = True
forwarded_allow_ips = "*"  # nothing depends on what a proxy forwards; else each client's address would be parsed
forwarder_headers = ""  # else a request's SCRIPT_NAME header would change its path


def on_starting(server: Any) -> None:
    """Log the settings that are in force; DATABASE_URL, which may hold a password, is not among them."""
    shown = " ".join(f"{name}={value}" for name, value in _settings.items() if name != "logging")
    server.log.info("settings: %s", shown)


def pre_request(worker: Any, req: Any) -> None:
    """Hang up after the answer if others wait for a connection. gunicorn's hook would log the path, keys included."""
    if worker.nr_conns > worker.max_keepalived:
        req.force_close()


def post_worker_init(worker: Any) -> None:
    """Make the garbage collector rare: a batch's JSON is thousands of objects without a cycle."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
