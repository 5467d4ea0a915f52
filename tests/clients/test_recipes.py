"""Every sender of docs/clients.md: in calm, without the service, with a lost response, with a used-up quota."""

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

from dev.service import PATH, ROOT, wait_for
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
    "igris_logging.py with structlog": """
        import logging, os, sys
        import structlog
        from igris import Igris
        from igris_logging import IgrisHandler
        logging.getLogger("audit").addHandler(IgrisHandler(Igris(sys.argv[1], os.environ["KEY"])))
        logging.getLogger("audit").setLevel("INFO")
        structlog.configure(
            processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
            logger_factory=structlog.stdlib.LoggerFactory(),
            wrapper_class=structlog.stdlib.BoundLogger,
        )
        for number in range(3):
            structlog.get_logger("audit").info("number", toolName=f"event-{number}", number=number)
    """,
    "igris_logging.py with loguru": """
        import os, sys
        from igris import Igris
        from igris_logging import IgrisHandler
        from loguru import logger
        logger.remove()
        logger.add(IgrisHandler(Igris(sys.argv[1], os.environ["KEY"])), format="{message}")
        for number in range(3):
            logger.bind(toolName=f"event-{number}", number=number).info("number")
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
    "igris_litellm.py": """
        import asyncio, os, sys
        import litellm
        from igris import Igris
        from igris_litellm import IgrisLogger
        igris = Igris(sys.argv[1], os.environ["KEY"])
        sent, send = [], igris.send
        igris.send = lambda *values, **named: sent.append(send(*values, **named))
        litellm.callbacks = [IgrisLogger(igris)]
        litellm.suppress_debug_info = True
        call = {"messages": [{"role": "user", "content": "Hi"}], "api_key": "none"}
        litellm.completion(model="openai/event-0", mock_response="Hello", **call)
        try:
            litellm.completion(model="openai/event-1", mock_response="litellm.RateLimitError", **call)
        except litellm.RateLimitError:
            pass
        async def main():
            await litellm.acompletion(model="openai/event-2", mock_response="Hello", **call)
            while len(sent) < 3:  # LiteLLM calls its loggers later
                await asyncio.sleep(0.05)
        asyncio.run(main())
    """,
    "igris_httpx.py": """
        import asyncio, os, sys, threading
        from http.server import BaseHTTPRequestHandler, HTTPServer
        import anthropic, openai
        from igris import Igris
        from igris_httpx import IgrisHook
        ANSWERS = {  # by the end of the path, as the two services respond
            "completions": b'{"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": []}',
            "embeddings": b'{"object": "list", "data": [{"index": 0, "embedding": [0.5]}], "model": "m"}',
            "messages": b'{"id": "m", "type": "message", "role": "assistant", "model": "m", "content": []}',
        }
        class Service(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                response = ANSWERS[self.path.rpartition("/")[2]]
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(response)))
                self.end_headers()
                self.wfile.write(response)
            def log_message(self, *arguments): pass
        service = HTTPServer(("127.0.0.1", 0), Service)
        threading.Thread(target=service.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{service.server_port}"
        hook = IgrisHook(Igris(sys.argv[1], os.environ["KEY"]))
        hi = [{"role": "user", "content": "Hi"}]
        hooked = openai.DefaultHttpxClient(event_hooks={"response": [hook]})
        openai.OpenAI(base_url=url, api_key="none", http_client=hooked).embeddings.create(model="event-0", input="Hi")
        hooked = anthropic.DefaultHttpxClient(event_hooks={"response": [hook]})
        client = anthropic.Anthropic(base_url=url, api_key="none", http_client=hooked)
        client.messages.create(model="event-1", max_tokens=9, messages=hi)
        async def main():
            hooked = openai.DefaultAsyncHttpxClient(event_hooks={"response": [hook.asynchronous]})
            async with openai.AsyncOpenAI(base_url=url, api_key="none", http_client=hooked) as client:
                await client.chat.completions.create(model="event-2", messages=hi)
        asyncio.run(main())
    """,
    "igris_agents.py": """
        import os, sys
        from agents import function_span, generation_span, set_trace_processors, trace
        from igris import Igris
        from igris_agents import IgrisProcessor
        set_trace_processors([IgrisProcessor(Igris(sys.argv[1], os.environ["KEY"]))])
        with trace("work"):
            with function_span("event-0"), function_span("event-1"):
                pass
            with generation_span(model="event-2"):
                pass
    """,
    "send_requests.py": """
        import os, sys
        from send_requests import send
        events = [{"type": "custom", "toolName": f"event-{n}", "metadata": {"number": n}} for n in range(3)]
        assert send(sys.argv[1], os.environ["KEY"], events) == 3
    """,
    "send_httpx.py": """
        import os, sys
        from send_httpx import send
        events = [{"type": "custom", "toolName": f"event-{n}", "metadata": {"number": n}} for n in range(3)]
        assert send(sys.argv[1], os.environ["KEY"], events) == 3
    """,
    "send.mjs": """
        import { send } from "./send.mjs";
        const event = (number) => ({ type: "custom", toolName: `event-${number}`, metadata: { number } });
        const { data } = await send(process.argv[1], process.env.KEY, [0, 1, 2].map(event));
        if (data.ingested !== 3) process.exit(1);
    """,
    "send_got.mjs": """
        import { send } from "./send_got.mjs";
        const event = (number) => ({ type: "custom", toolName: `event-${number}`, metadata: { number } });
        const { data } = await send(process.argv[1], process.env.KEY, [0, 1, 2].map(event));
        if (data.ingested !== 3) process.exit(1);
    """,
    "igris_stream.mjs with pino": """
        import pino from "pino";
        import { IgrisStream } from "./igris_stream.mjs";
        const log = pino(new IgrisStream(process.argv[1], process.env.KEY));
        for (const number of [0, 1, 2]) log.info({ toolName: `event-${number}`, number }, "number");
    """,
    "igris_stream.mjs with winston": """
        import winston from "winston";
        import { IgrisStream } from "./igris_stream.mjs";
        const stream = new IgrisStream(process.argv[1], process.env.KEY);
        const log = winston.createLogger({ transports: [new winston.transports.Stream({ stream })] });
        for (const number of [0, 1, 2]) log.info("number", { toolName: `event-${number}`, number });
    """,
    "send.sh": "",
}
NEEDS = {
    "igris_logging.py with structlog": "structlog",
    "igris_logging.py with loguru": "loguru",
    "igris_otel.py": "opentelemetry",
    "igris_langchain.py": "langchain_core",
    "igris_litellm.py": "litellm",
    "igris_httpx.py": "anthropic",
    "igris_agents.py": "agents",
    "send_httpx.py": "stamina",
}
NEEDS_NPM = {"send_got.mjs": "got", "igris_stream.mjs with pino": "pino", "igris_stream.mjs with winston": "winston"}
NPM_PACKAGES = ("got@14.6.6", "pino@10.4.0", "winston@3.19.0")


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipes and what they need from npm."""
    if not os.environ.get("CLIENTS_TEST") or not shutil.which("npm"):
        pytest.skip("make clients-test, with npm")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"type": "module"}')
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", *NPM_PACKAGES], cwd=folder, check=True)
    for path in CLIENTS.glob("*.mjs"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(params=PROGRAMS)
def send_three(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, str], Any]:
    """Runs a recipe as a process, and returns it when it has ended."""
    name = request.param
    lines = [line[8:] for line in PROGRAMS[name].splitlines()]
    folder = CLIENTS
    if ".py" in name:
        if name in NEEDS:
            pytest.importorskip(NEEDS[name], reason=f"{name}: make clients-test installs what it needs")
        command = [sys.executable, "-c", "\n".join(lines)]
    elif ".mjs" in name:
        if not shutil.which("node"):
            pytest.skip("needs node")
        if name in NEEDS_NPM:
            folder = request.getfixturevalue("node_folder")
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
            cwd=folder,
            env={**os.environ, "KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
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
    "trouble",
    [{}, {"lose_requests": 3}, {"lose_responses": 1}, {"limit": 2}],
    ids=["calm", "service is away", "response is lost", "nginx limits the rate"],
)
def test_each_event_is_stored_once(
    account: Account, send_three: Callable[[str, str], Any], trouble: dict[str, int]
) -> None:
    with UnreliableProxy(account.service.port, **trouble) as proxy:
        done = send_three(f"http://127.0.0.1:{proxy.port}{PATH}", account.key)
    assert done.returncode == 0, done.stderr
    assert proxy.connections > sum(trouble.values())
    reported = done.stderr.splitlines()
    assert all("can't be reached, trying again: " in line for line in reported)
    assert len(reported) == len(set(reported))
    assert stored(account) == THREE


def test_a_used_up_quota_is_reported_and_nothing_hangs(
    new_account: Callable[..., Account], send_three: Callable[[str, str], Any]
) -> None:
    account = new_account(quota=0)
    done = send_three(account.service.url + PATH, account.key)
    assert "429" in done.stderr
    assert "quota" in done.stderr
    assert stored(account) == []


@pytest.mark.skipif(not shutil.which("syslog-ng"), reason="needs syslog-ng")
def test_syslog_ng_sends_each_line_past_a_bad_one(account: Account, tmp_path: Path) -> None:
    events = [json.dumps({"type": "custom", "toolName": f"event-{number}"}) for number in range(3)]
    (tmp_path / "events.ndjson").write_text("\n".join([*events[:2], "no JSON", events[2], ""]))
    with UnreliableProxy(account.service.port, lose_requests=1, lose_responses=0) as proxy:
        config = (CLIENTS / "syslog-ng.conf").read_text()
        for old, new in (
            ("/var/log/agent", str(tmp_path)),
            ("https://igris.example.com", f"http://127.0.0.1:{proxy.port}"),
            ("ig_...", account.key),
            ("time-reopen(5)", "time-reopen(1)"),
            ("disk-buffer(", f'disk-buffer(dir("{tmp_path}") '),
        ):
            assert old in config
            config = config.replace(old, new)
        (tmp_path / "syslog-ng.conf").write_text(config)
        files = [f"--{kind}={tmp_path}/{kind}" for kind in ("persist-file", "pidfile", "control")]
        command = ["syslog-ng", "--foreground", "--no-caps", f"--cfgfile={tmp_path}/syslog-ng.conf", *files]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            wait_for(lambda: stored(account) == THREE)
        finally:
            process.terminate()
            process.communicate(timeout=20)
    assert stored(account) == THREE


def test_events_that_cannot_be_sent_by_the_end_of_the_process_are_reported() -> None:
    program = """if True:
        from igris import Igris
        igris = Igris("http://127.0.0.1:1", "ig_" + "x" * 40, max_waiting=2000, exit_timeout=0.1)
        for number in range(2000):
            igris.send("custom", f"event-{number}")
    """
    done = subprocess.run([sys.executable, "-c", program], cwd=CLIENTS, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    [unreachable, *rejected] = done.stderr.splitlines()
    assert "can't be reached, trying again" in unreachable
    assert rejected == ["igris-ingest rejected events with 0: the process ended before there was a response"] * 2


def test_the_document_names_every_client() -> None:
    page = (ROOT / "docs/clients.md").read_text()
    files = {path.name for path in CLIENTS.iterdir() if path.is_file()}
    assert set(re.findall(r"\(\.\./clients/([\w.-]+)\)", page)) >= files
    assert {name.partition(" ")[0] for name in PROGRAMS} == files - {"syslog-ng.conf"}
