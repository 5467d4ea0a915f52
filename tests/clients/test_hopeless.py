"""What no retry can help: the clients report it, and don't block the program that is audited."""

import functools
import os
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from dev.service import EVENT, PATH, ROOT, Service, free_port
from tests.support import Account

KEY = "ig_" + "x" * 40
IGRIS = """
import sys
sys.path.insert(0, "clients")
from igris import Igris
igris = Igris(*sys.argv[1:], exit_timeout=1, on_rejected=lambda status, reason, events: print(status, reason))
igris.send("tool_call", "generate_report")
"""
STREAM = """
const { IgrisStream } = await import("./clients/igris_stream.mjs");
const onRejected = (error) => console.log(error.message, error.cause?.message);
const stream = new IgrisStream(process.argv[1], process.argv[2], { onRejected });
stream.end("{}\\n");
"""


def run(*command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environ}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


python = functools.partial(run, sys.executable, "-c", IGRIS)
node = functools.partial(run, "node", "--input-type=module", "-e", STREAM, "--")
send_sh = functools.partial(run, "clients/send.sh")


@pytest.fixture
def unverified(tmp_path: Path) -> Iterator[str]:
    """A server whose certificate does not verify; its URL."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    name = ["-subj", "/CN=localhost", "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *name]
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://localhost:{server.server_port}{PATH}"
        server.shutdown()


def test_a_certificate_that_does_not_verify_is_reported_at_once(unverified: str, tmp_path: Path) -> None:
    done = python(unverified, KEY)
    assert (done.returncode, "certificate verify failed" in done.stdout) == (0, True), done
    file = tmp_path / "events.ndjson"
    file.write_text("{}")
    done = send_sh(unverified, str(file), KEY=KEY)
    assert (done.returncode, "certificate" in done.stderr) == (1, True), done
    if shutil.which("node"):
        done = node(unverified, KEY)
        assert (done.returncode, "self-signed certificate" in done.stdout) == (0, True), done


def test_an_error_that_may_pass_is_printed_once() -> None:
    url = f"http://127.0.0.1:{free_port()}{PATH}"  # where no service listens
    done = python(url, KEY)
    assert done.stderr.count("trying again") == 1
    assert "0 the process ended before it responded" in done.stdout


def test_a_key_with_a_line_feed_works_and_a_wrong_one_is_an_error(
    service: Service, account: Account, tmp_path: Path
) -> None:
    url = service.url + PATH
    assert python(url, account.key + "\r\n").returncode == 0
    file = tmp_path / "events.ndjson"
    file.write_text('{"type": "custom", "toolName": "x"}')
    assert send_sh(url, str(file), KEY=account.key + "\n").returncode == 0
    assert account.count() == 2
    done = python(url, "ig_short")
    assert "ValueError: the key must be ig_ and 40 letters and digits" in done.stderr
    for arguments, key in (((url, str(file)), "ig_short"), ((url, "missing"), account.key), ((url,), account.key)):
        assert send_sh(*arguments, KEY=key).returncode == 2
    assert account.post(EVENT).status == 200
