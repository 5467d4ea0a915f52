"use strict";

const pack = JSON.parse(document.getElementById("pack").textContent);
const byId = (id) => document.getElementById(id);
const PIECE = 4 * 1024 * 1024; // bytes that are read and hashed at once: the page stays usable in between

// The times are in UTC; the reader's own are beside them.
for (const time of document.querySelectorAll("time[datetime]")) {
    const moment = new Date(time.dateTime);
    if (moment.getTimezoneOffset() !== 0) time.append(` (${moment.toLocaleString()} here)`);
}

// The calendar: the sentence of a day is shown on focus and hover. The arrow keys go from day to day.
const days = [...document.querySelectorAll("#calendar .day")];
const show = (day) => { byId("sentence").textContent = day.getAttribute("aria-label"); };
days.forEach((day, position) => {
    day.tabIndex = position ? -1 : 0;
    day.addEventListener("mouseenter", () => show(day));
    day.addEventListener("focus", () => show(day));
    day.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 7, ArrowUp: -7 }[event.key];
        const next = step && days[position + step];
        if (!next) return;
        event.preventDefault();
        day.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
    });
});

// The entries: a month is filled in when it is opened.
const kept = new Set(pack.kept);
for (const details of document.querySelectorAll("details[data-first]")) {
    details.addEventListener("toggle", () => {
        const body = details.querySelector("tbody");
        if (body.rows.length) return;
        for (let number = +details.dataset.first; number <= +details.dataset.last; number++) {
            const [since, until, events, digest, reason] = pack.entries[number - 1];
            const row = body.insertRow();
            const cells = [number, since, until, events, reason ?? "seal", kept.has(number) ? "kept elsewhere" : "", digest];
            cells.forEach((cell, column) => {
                const made = row.insertCell();
                made.textContent = cell;
                if (column === 0 || column === 3) made.className = "number";
                if (column === 6) made.className = "digest";
            });
        }
    });
}

function lineOf(number, previous) {
    const [since, until, events, digest, reason] = pack.entries[number - 1];
    return `{"number": ${number}, "since": "${since}", "until": "${until}", "events": ${events}, "digest": "${digest}", ` +
        `"previous": "${previous}", "organization": ${JSON.stringify(pack.organization)}, "reason": ${JSON.stringify(reason)}}\n`;
}

const pause = () => new Promise((resolve) => setTimeout(resolve));

// Returns the digest of each entry of the chain, and that of the whole file chain.ndjson.
async function digestsOfChain() {
    const digests = [];
    const whole = sha256.create();
    let previous = "0".repeat(64);
    for (let number = 1; number <= pack.entries.length; number++) {
        const line = lineOf(number, previous);
        whole.update(line);
        previous = sha256(line);
        digests.push(previous);
        if (number % 5000 === 0) await pause();
    }
    return { digests, whole: whole.hex() };
}

async function digestOf(file, onPiece) {
    const hash = sha256.create();
    for (let begin = 0; begin < file.size; begin += PIECE) {
        hash.update(await file.slice(begin, begin + PIECE).arrayBuffer());
        onPiece(Math.min(PIECE, file.size - begin));
        await pause();
    }
    return hash.hex();
}

// Returns the files of what was dropped, also those in folders.
async function droppedFiles(items) {
    const files = [];
    async function walk(entry) {
        if (entry.isFile) {
            files.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
        } else {
            const reader = entry.createReader();
            for (;;) {
                const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
                if (!some.length) break;
                for (const each of some) await walk(each);
            }
        }
    }
    for (const entry of [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean)) await walk(entry);
    return files;
}

function report(sentences) {
    byId("result").replaceChildren(...sentences.map(([kind, text]) => {
        const line = document.createElement("p");
        line.className = kind;
        line.textContent = text;
        return line;
    }));
}

const some = (names) => names.slice(0, 5).join(", ") + (names.length > 5 ? ` and ${names.length - 5} more` : "");

async function check(files) {
    const bar = byId("progress");
    bar.hidden = false;
    bar.max = Math.max(1, files.reduce((sum, file) => sum + file.size, 0));
    bar.value = 0;
    const { digests, whole } = await digestsOfChain();
    const newest = digests.at(-1) ?? "";
    const sentences = [];
    if (newest === pack.head) {
        sentences.push(["good", `The chain of ${digests.length} entries is linked. Its newest entry is ${newest}.`]);
    } else {
        sentences.push(["bad", `The chain of this page is not linked: its entries give ${newest}, and not ${pack.head}.`]);
    }
    const wanted = byId("head").value.trim().toLowerCase();
    if (!wanted) {
        sentences.push(["", "No digest that was kept elsewhere was compared. The maker of this page could have made all of it again."]);
    } else if (digests.includes(wanted)) {
        sentences.push(["good", `The kept digest is that of entry ${digests.indexOf(wanted) + 1}: the chain up to there is the one that was kept.`]);
    } else {
        sentences.push(["bad", "No entry has the kept digest: the chain is not the one that was kept."]);
    }
    const found = new Map(); // number of an entry: same or differs
    const differing = [];
    const unknown = [];
    const byDigest = new Map(pack.files.map(([number]) => [pack.entries[number - 1][3], number]));
    const byName = new Map(pack.files.map(([number, name]) => [name, number]));
    for (const file of files) {
        const digest = await digestOf(file, (size) => { bar.value += size; });
        const number = byName.get(file.name) ?? byDigest.get(digest);
        if (number) {
            const isSame = pack.entries[number - 1][3] === digest;
            found.set(number, isSame ? "same" : "differs");
            if (!isSame) differing.push(file.name);
        } else if (file.name === "chain.ndjson") {
            sentences.push(digest === whole ? ["good", "chain.ndjson has the entries of this page."] : ["bad", "chain.ndjson has other entries than this page."]);
        } else if (!["index.html", "check.sh", "SHA256SUMS"].includes(file.name)) {
            unknown.push(file.name);
        }
    }
    const missing = pack.files.filter(([number]) => !found.has(number)).map(([, name]) => name);
    const same = [...found.values()].filter((each) => each === "same").length;
    if (same) sentences.push(["good", `As the chain names them: ${same} of ${pack.files.length} files.`]);
    if (differing.length) sentences.push(["bad", `Not as they were sealed: ${some(differing)}.`]);
    if (missing.length && files.length) sentences.push(["bad", `Not dropped here: ${some(missing)}.`]);
    if (unknown.length) sentences.push(["", `No files of this page: ${some(unknown)}.`]);
    if (files.length) mark(found);
    report(sentences);
    bar.hidden = true;
}

// Marks each day by what was found here, apart from what the page claims.
function mark(found) {
    const words = { same: "has the digests of the chain", differs: "differs from what was sealed", missing: "was not dropped" };
    for (const day of days) {
        const states = day.dataset.files.split(" ").filter(Boolean).map((number) => found.get(+number) ?? "missing");
        if (!states.length) continue;
        const state = ["differs", "missing", "same"].find((each) => states.includes(each));
        day.dataset.found = state;
        const [claimed] = day.getAttribute("aria-label").split(" | ");
        day.setAttribute("aria-label", `${claimed} | checked here: the file ${words[state]}`);
    }
}

const zone = byId("drop");
zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("over"); });
zone.addEventListener("dragleave", () => zone.classList.remove("over"));
zone.addEventListener("drop", async (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    await check(await droppedFiles(event.dataTransfer.items));
});
for (const id of ["files", "folder"]) {
    byId(id).addEventListener("change", async (event) => {
        await check([...event.target.files]);
        event.target.value = ""; // the same files can be chosen again
    });
}
byId("chain").addEventListener("click", () => check([]));
