"""Make the picture of the README: a request, its response, and `events --follow`, on a terminal of 80 columns.

.venv/bin/python -m dev.picture docs/terminal.svg
"""

import io
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from dev import postgres
from dev.service import ROOT, Service, set_up

COLUMNS = 80

REQUEST = """\
curl http://127.0.0.1:8000/api/v1/ingest/raw \\
  -H "Authorization: Bearer $(cat var/key)" \\
  -H "Content-Type: application/json" \\
  -d '{"events": [
    {"type": "completion", "toolName": "gpt-4o", "metadata": {"tokens": 512}},
    {"type": "tool_call", "toolName": "search_web", "action": "allow"},
    {"type": "tool_call", "toolName": "delete_table", "action": "deny"}]}'"""

FOLLOW = "igris-ingest events --org demo --follow"


def main(file: str) -> None:
    with postgres.temporary() as server, tempfile.TemporaryDirectory() as folder:
        key = set_up(server.url, "demo", 50_000)
        (Path(folder) / "var").mkdir()
        (Path(folder) / "var/key").write_text(key)
        service = Service(server.url, Path(folder) / "log").start()
        try:
            response, events = run(service, folder)
        finally:
            service.stop()
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), color_system="truecolor")
    for command, output in ((REQUEST, response), (FOLLOW, events)):
        for text in (Text(f"$ {command}", style="bold"), Text.from_ansi(output)):
            assert max(line.cell_len for line in text.split()) <= COLUMNS
            console.print(text)
        if command == REQUEST:
            console.print(Rule(style="dim"))
    console.print()  # else the underscores of the last line are cut off
    svg = console.export_svg(title="igris-ingest", unique_id="terminal")
    Path(file).write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))  # no font from elsewhere


def run(service: Service, folder: str) -> tuple[str, str]:
    """Return the response of the request, and what `events` shows of it on a terminal."""
    environ = {**os.environ, "DATABASE_URL": service.database_url, "COLUMNS": str(COLUMNS), "PYTHONUNBUFFERED": "1"}
    environ["PATH"] = f"{ROOT}:{environ['PATH']}"
    terminal, end = pty.openpty()
    follower = subprocess.Popen(FOLLOW.split(), env=environ, stdout=end)
    try:
        shown = os.read(terminal, 10_000)  # the names of the columns
        command = ["sh", "-c", f"exec {REQUEST}".replace("curl", "curl -s").replace("8000", str(service.port))]
        response = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
        while shown.count(b"\n") < 4:
            shown += os.read(terminal, 10_000)
    finally:
        follower.send_signal(signal.SIGINT)
        follower.wait()
        os.close(terminal)
        os.close(end)
    return response.rstrip("\n"), shown.decode().replace("\r\n", "\n").rstrip("\n")


if __name__ == "__main__":
    main(sys.argv[1])
