"""Every sender of docs/clients.md: in calm, without the service, with a lost answer, with a used-up quota."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dev.service import PATH, ROOT
from tests.clients.unreliable import UnreliableProxy
from tests.support import Account

CLIENTS = ROOT / "clients"

# Each program sends three events to the URL that is its first argument; the key is in KEY.
PROGRAMS = {
    "igris.py": """
        import os, sys
        from igris import Igris
        igris = Igris(sys.argv[1], os.environ["KEY"])
        for number in range(3):
            igris.send("custom", f"event-{number}", metadata={"number": number})
    """,
    "igris_logging.py": """
        import logging, os, sys
        from igris import Igris
        from igris_logging import IgrisHandler
        log = logging.getLogger("audit")
        log.setLevel("INFO")
        log.addHandler(IgrisHandler(Igris(sys.argv[1], os.environ["KEY"])))
        for number in range(3):
            log.info("number %s", number, extra={"toolName": f"event-{number}", "number": number})
    """,
    "igris_otel.py": """
        import os, sys
        from igris import Igris
        from igris_otel import IgrisExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(IgrisExporter(Igris(sys.argv[1], os.environ["KEY"]))))
        tracer = provider.get_tracer("test")
        for number in range(3):
            attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": f"event-{number}"}
            with tracer.start_as_current_span("tool", attributes=attributes | {"number": number}):
                with tracer.start_as_current_span("not about AI"):
                    pass
        provider.shutdown()
    """,
    "igris_langchain.py": """
        import os, sys
        from igris import Igris
        from igris_langchain import IgrisCallbacks
        from langchain_core.tools import tool
        callbacks = {"callbacks": [IgrisCallbacks(Igris(sys.argv[1], os.environ["KEY"]))]}
        for number in range(3):
            def work(): "Work."
            work.__name__ = f"event-{number}"
            tool(work).invoke({}, callbacks)
    """,
    "send_requests.py": """
        import os, sys
        from send_requests import send
        events = [{"type": "custom", "toolName": f"event-{n}", "metadata": {"number": n}} for n in range(3)]
        assert send(sys.argv[1], os.environ["KEY"], events) == 3
    """,
    "send.mjs": """
        import { send } from "./send.mjs";
        const event = (number) => ({ type: "custom", toolName: `event-${number}`, metadata: { number } });
        const events = [0, 1, 2].map(event);
        if ((await send(process.argv[1], process.env.KEY, events)) !== 3) process.exit(1);
    """,
    "send.sh": "",
}
NEEDS = {"igris_otel.py": "opentelemetry", "igris_langchain.py": "langchain_core"}


@pytest.fixture(params=PROGRAMS)
def send_three(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, str], Any]:
    """Runs a recipe as a process, and returns it when it has ended."""
    name = request.param
    lines = [line[8:] for line in PROGRAMS[name].splitlines()]
    if name.endswith(".py"):
        if name in NEEDS:
            pytest.importorskip(NEEDS[name], reason=f"{name}: make clients-test installs what it needs")
        command = [sys.executable, "-c", "\n".join(lines)]
    elif name.endswith(".mjs"):
        if not shutil.which("node"):
            pytest.skip("needs node")
        command = ["node", "--input-type=module", "--eval", "\n".join(lines)]
    else:
        if not shutil.which("curl"):
            pytest.skip("needs curl")
        events = [{"type": "custom", "toolName": f"event-{n}", "metadata": {"number": n}} for n in range(3)]
        (tmp_path / "events.ndjson").write_text("".join(json.dumps(event) + "\n" for event in events))
        command = [str(CLIENTS / "send.sh")]

    def run(url: str, key: str) -> Any:
        arguments = [*command, url, *([str(tmp_path / "events.ndjson")] if name == "send.sh" else [])]
        return subprocess.run(
            arguments,
            cwd=CLIENTS,
            env={**os.environ, "KEY": key},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )

    return run


def stored(account: Account) -> list[str]:
    return sorted(name for (name,) in account.rows("tool_name"))


THREE = ["event-0", "event-1", "event-2"]


@pytest.mark.parametrize(
    ("lose_requests", "lose_answers"), [(0, 0), (3, 0), (0, 1)], ids=["calm", "service is away", "answer is lost"]
)
def test_each_event_is_stored_once(
    account: Account, send_three: Callable[[str, str], Any], lose_requests: int, lose_answers: int
) -> None:
    with UnreliableProxy(account.service.port, lose_requests=lose_requests, lose_answers=lose_answers) as proxy:
        done = send_three(f"http://127.0.0.1:{proxy.port}{PATH}", account.key)
    assert done.returncode == 0, done.stderr
    assert proxy.connections > lose_requests + lose_answers
    assert done.stderr == ""
    assert stored(account) == THREE


def test_a_used_up_quota_is_said_and_nothing_hangs(
    new_account: Callable[..., Account], send_three: Callable[[str, str], Any]
) -> None:
    account = new_account(quota=0)
    done = send_three(account.service.url + PATH, account.key)
    assert "429" in done.stderr
    assert "quota" in done.stderr
    assert stored(account) == []


def test_what_cannot_be_sent_by_the_end_of_the_process_is_said() -> None:
    program = """if True:
        from igris import Igris
        igris = Igris("http://127.0.0.1:1", "ig_", max_waiting=2000, exit_timeout=0.1)
        for number in range(2000):
            igris.send("custom", f"event-{number}")
    """
    done = subprocess.run([sys.executable, "-c", program], cwd=CLIENTS, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert done.stderr.splitlines() == ["igris-ingest refused events with 0: the process ended before it answered"] * 2


def test_the_page_names_every_sender() -> None:
    page = (ROOT / "docs/clients.md").read_text()
    assert set(re.findall(r"`clients/([\w.]+)`", page)) == {path.name for path in CLIENTS.iterdir() if path.is_file()}
    assert set(PROGRAMS) == {path.name for path in CLIENTS.iterdir() if path.is_file()}
