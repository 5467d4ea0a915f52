"""What no retry can help: the clients report it, and don't block the program that is audited."""

import functools
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
    assert "0 the process ended before there was a response" in done.stdout


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


@contextmanager
def responding(response: bytes) -> Iterator[str]:
    """A server that sends these bytes to each connection, and with none waits; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        clients: list[socket.socket] = []

        def serve() -> None:
            with suppress(OSError):
                while True:
                    clients.append(listener.accept()[0])
                    clients[-1].recv(2**20)
                    if response:
                        clients[-1].sendall(response)
                        clients[-1].close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}{PATH}"
        listener.shutdown(socket.SHUT_RDWR)
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    ("response", "reported"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 100\r\n\r\n{", "400 \n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "0 the process ended before there was a response\n"),
        (b"", "0 the process ended before there was a response\n"),
    ],
    ids=["cut off", "not the service's", "none"],
)
def test_each_event_that_is_not_stored_is_reported(response: bytes, reported: str) -> None:
    with responding(response) as url:
        done = python(url, KEY)
    assert (done.returncode, done.stdout) == (0, reported), done


def test_a_batch_that_is_too_large_is_halved(account: Account, start_service: Callable[..., Service]) -> None:
    small = start_service(MAX_BODY_BYTES=500)
    program = IGRIS.replace("exit_timeout=1, ", "") + "for n in range(9): igris.send('custom', f'{n}')\n"
    done = run(sys.executable, "-c", program, small.url + PATH, account.key)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(name for (name,) in account.rows("tool_name")) == [*"012345678", "generate_report"]
