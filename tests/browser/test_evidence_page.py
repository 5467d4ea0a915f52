"""The page of an evidence pack, opened in a real Chromium from its folder."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from commands.base import connect
from commands.evidence import chain
from commands.evidence.pack import Pack, write_pack
from commands.evidence.report import Report
from dev.service import wait_for
from tests.commands.trail import receive, run, seals, verify
from tests.support import Account

CHROMIUM = shutil.which("chromium")

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="make browser-test installs playwright")

DAYS = ("2026-03-01", "2026-03-02", "2026-03-03", "2026-03-06")
HOSTILE = (
    '"><img src=https://example.com/x onerror=alert(1)></script><script>alert(2)</script>{{ 7 * 7 }}\u2028\U0001f600'
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page of a folder; fails at a script error, a dialog, a violation of its policy, or a request."""
    noticed: list[str] = []
    contexts = []

    def open_(folder: Path, **options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: noticed.append(message.text))
        page.on("pageerror", lambda error: noticed.append(str(error)))
        page.on("dialog", lambda dialog: noticed.append(dialog.message))
        page.on("request", lambda request: noticed.append(request.url) if "index.html" not in request.url else None)
        page.goto((folder / "index.html").as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert noticed == []


@pytest.fixture
def folder(account: Account, tmp_path: Path) -> Path:
    receive(account, *(f"{day}T10:00:00Z" for day in DAYS))
    seals(account)
    kept = json.dumps(verify(account)[1])
    (tmp_path / "heads").write_text(kept)
    run(account, "prune", "--yes", "--before", "2026-03-02", "--org", account.org_id, "--reason", "270 days")
    output = ["--output", str(tmp_path / "pack")]
    period = ["--since", "2026-03-01", "--until", "2026-03-08"]
    heads = ["--heads", str(tmp_path / "heads")]
    assert run(account, "evidence", "--org", account.org_id, *period, *heads, *output).returncode == 0
    return tmp_path / "pack"


def files(folder: Path) -> list[str]:
    return sorted(map(str, (folder / "events").iterdir()))


def check(page: Any, chosen: list[str] | str, selector: str = "#files") -> list[str]:
    """Chooses files, or a folder; returns the sentences of the result."""
    page.evaluate("document.getElementById('result').replaceChildren()")
    page.set_input_files(selector, chosen)
    page.wait_for_selector("#result p")
    return [str(text) for text in page.locator("#result p").all_inner_texts()]


def test_the_page_says_what_verify_says(folder: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(folder, timezone_id="Asia/Tokyo")
    text = page.inner_text("body")
    assert "✓ The trail is intact: the 9 events are as they were received and sealed." in text
    assert "The trail is there since 2026-03-02. Before that, events were deleted: prune --before 2026-03-02" in text
    assert "Kept entries vouch for what was received before" in text
    assert "Not proved: that a client reported the truth" in text
    assert "3 events deleted of those received before 2026-03-02; made after the newest kept entry" in text
    states = page.eval_on_selector_all("#calendar .day", "days => days.map(day => day.className.split(' ')[1])")
    assert states == ["amended", "sealed", "sealed", "quiet", "quiet", "sealed", "quiet"]
    assert "log: 9 events, the most 3 on 2026-03-02" in text
    assert "(3/1/2026, 9:00:00 AM here)" in text  # the reader's time beside UTC
    page.click("details[data-first] summary")
    page.wait_for_selector("details[data-first] tbody tr")
    rows = page.locator("details[data-first] tbody tr").all_inner_texts()
    assert rows[1].split("\t")[:4] == ["2", "2026-03-02T00:00:00.000000Z", "2026-03-03T00:00:00.000000Z", "3"]
    page.locator("details[data-first] summary").last.click()
    page.wait_for_selector("text=kept elsewhere")


def test_a_day_is_explained_on_focus_and_hover_and_the_arrows_move(folder: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(folder)
    page.keyboard.press("Tab")
    assert page.inner_text("#sentence").startswith("2026-03-01: entry ")
    assert "0 events left: prune --before 2026-03-02: 270 days" in page.inner_text("#sentence")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#sentence") == "2026-03-02: 3 events, as entry 2 sealed them"
    page.hover("#calendar .day:last-child")
    assert page.inner_text("#sentence") == "2026-03-07: 0 events, as entry 7 sealed them"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"  # the calendar is one stop


def test_files_are_checked_in_the_page(folder: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(folder)
    good = check(page, files(folder))
    assert good[0].startswith("The chain of ")
    assert "is linked" in good[0]
    assert "No digest that was kept elsewhere was compared." in good[1]
    assert good[2:] == ["As the chain names them: 3 of 3 files."]
    found = "days => days.map(day => day.dataset.found ?? '')"
    assert page.eval_on_selector_all("#calendar .day", found) == ["", "same", "same", "", "", "same", ""]

    head = json.loads((folder.parent / "heads").read_text())["head"]
    page.fill("#head", head["entryDigest"])
    sentences = check(page, str(folder), "#folder")
    assert f"The kept digest is that of entry {head['number']}" in sentences[1]
    assert "chain.ndjson has the entries of this page." in sentences
    page.fill("#head", "0" * 64)
    assert "No entry has the kept digest" in check(page, files(folder))[1]

    changed = Path(files(folder)[1])
    changed.write_bytes(changed.read_bytes().replace(b'"log"', b'"lot"', 1))
    sentences = check(page, files(folder))
    assert sentences[2:] == ["As the chain names them: 2 of 3 files.", f"Not as they were sealed: {changed.name}."]
    assert page.eval_on_selector_all("#calendar .day", found) == ["", "same", "differs", "", "", "same", ""]
    label = page.get_attribute("#calendar .day:nth-child(3)", "aria-label")
    assert label.endswith(" | checked here: the file differs from what was sealed")

    (folder / "events" / "note.txt").write_text("x")
    sentences = check(page, [*files(folder)[:1], str(folder / "events" / "note.txt")])
    missing = ", ".join(Path(path).name for path in files(folder)[1:3])
    assert sentences[2:] == [
        "As the chain names them: 1 of 3 files.",
        f"Not dropped here: {missing}.",
        "No files of this page: note.txt.",
    ]
    assert page.eval_on_selector_all("#calendar .day", found) == ["", "same", "missing", "", "", "missing", ""]


def test_a_chain_that_was_changed_in_the_page_is_found(folder: Path, open_page: Callable[..., Any]) -> None:
    page_file = folder / "index.html"
    digest = hashlib.sha256((folder / "events" / Path(files(folder)[0]).name).read_bytes()).hexdigest()
    page_file.write_text(page_file.read_text().replace(digest, digest[::-1]))
    page = open_page(folder)
    page.click("#chain")
    page.wait_for_selector("#result p")
    assert "The chain of this page is not linked" in page.inner_text("#result")


def test_hostile_names_are_shown_as_they_are(
    account: Account, new_account: Callable[..., Account], tmp_path: Path, open_page: Callable[..., Any]
) -> None:
    name = HOSTILE.replace("\u2028", "")
    account.execute("INSERT INTO organizations (id) VALUES (%s)", name)
    insert = """
        INSERT INTO audit_events (org_id, type, tool_name, action, "timestamp", metadata, received_at)
        VALUES (%s, 'custom', %s, 'deny', now(), '{}', '2026-03-01T10:00Z')
    """
    account.execute(insert, name, HOSTILE)
    hostile = Account(account.service, name, "")
    try:
        seals(hostile)
        reason = name[:200]
        run(hostile, "prune", "--yes", "--before", "2026-03-01", "--org", name, "--reason", reason)
        run(hostile, "erase", "--org", name, "--metadata", '{"a": 1}', "--reason", reason)
        done = run(hostile, "evidence", "--org", name, "--output", str(tmp_path / "pack"))
        assert done.returncode == 0, done.stderr
        page = open_page(tmp_path / "pack")
        assert page.inner_text("h1") == f"Evidence of {name}"
        assert HOSTILE.split("\u2028")[0] in page.inner_text("body")
        assert page.locator("img").count() == 0
        assert check(page, files(tmp_path / "pack"))[2:] == ["As the chain names them: 1 of 1 files."]
    finally:
        run(hostile, "organizations", "delete", "--yes", name)


def test_the_policy_of_the_page_lets_no_request_out(account: Account, folder: Path, browser: Any) -> None:
    page = browser.new_page()
    page.goto((folder / "index.html").as_uri())
    url = f"http://127.0.0.1:{account.service.port}/asked-by-the-page"
    asked = account.service.output().count("Not found")
    assert page.evaluate(f"fetch('{url}').then(() => 'sent', () => 'blocked')") == "blocked"
    with page.expect_event("requestfailed"):
        page.evaluate(f"document.body.append(Object.assign(new Image(), {{src: '{url}'}}))")
    added = "Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'})"
    page.evaluate(f"document.body.append({added})")
    assert page.evaluate("window.ran") is None
    page.close()
    account.service.get("/asked-by-the-test")
    wait_for(lambda: account.service.output().count("Not found") > asked)
    assert account.service.output().count("Not found") == asked + 1


@pytest.mark.measures
def test_a_chain_of_100_000_entries_opens_and_is_checked(
    account: Account, tmp_path: Path, open_page: Callable[..., Any]
) -> None:
    begin = datetime(2015, 1, 1, tzinfo=UTC)
    hour = timedelta(hours=1)
    with connect(account.service.database_url) as connection:
        hours = [(begin + n * hour, begin + (n + 1) * hour, 0, chain.NO_EVENTS) for n in range(100_000)]
        hours[0] = (chain.BEGINNING, *hours[0][1:])
        entries = chain.following(connection, account.org_id, hours)
        (tmp_path / "pack").mkdir()
        report = Report(account.org_id, head=entries[-1], entries=len(entries), since=begin)
        end = begin + 100_000 * hour
        pack = Pack(tmp_path / "pack", None, "pack")
        write_pack(connection, pack, entries, [], report, begin, end, end, with_events=True)
    page = open_page(tmp_path / "pack")
    page.click("details[data-first] summary")
    page.wait_for_selector("details[data-first] tbody tr")
    assert page.locator("details[data-first] tbody tr").count() == 744
    page.click("#chain")
    page.wait_for_selector("#result p", timeout=60_000)
    assert "The chain of 100000 entries is linked." in page.inner_text("#result")


@pytest.mark.measures
def test_a_file_of_a_gigabyte_does_not_freeze_the_page(
    folder: Path, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    large = tmp_path / Path(files(folder)[0]).name
    with large.open("wb") as file:
        file.truncate(2**30)
    page = open_page(folder)
    page.evaluate("""
        window.longest = 0;
        let last = performance.now();
        const tick = () => {
            longest = Math.max(longest, performance.now() - last);
            last = performance.now();
            setTimeout(tick, 10);
        };
        tick();
    """)
    page.set_input_files("#files", str(large))
    page.wait_for_selector("progress:not([hidden])")
    page.wait_for_selector("#result p", timeout=100_000)
    assert f"Not as they were sealed: {large.name}." in page.inner_text("#result")
    assert page.evaluate("longest") < 2000  # milliseconds between two turns of the page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1000])
def test_the_page_fits_a_phone_and_a_sheet_of_paper(
    folder: Path, open_page: Callable[..., Any], tmp_path: Path, width: int, scheme: str
) -> None:
    page = open_page(folder, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    printed = page.pdf(format="A4", path=tmp_path / "page.pdf")
    assert printed.startswith(b"%PDF-")
    assert 1 <= printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") <= 4
