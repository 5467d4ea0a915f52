// Compares cases.json with the real Zod, or writes Zod's results into it:
//     cd tests/zod && npm install --no-save zod@3.25.76 && node generate.mjs [--write]
import { readFileSync, writeFileSync } from "node:fs";
import { details } from "./schema.mjs";

const file = new URL("cases.json", import.meta.url);
const cases = JSON.parse(readFileSync(file, "utf8"));
let differences = 0;
for (const each of cases) {
  const found = details(JSON.parse(each.body));
  const expected = each.expect.details ?? [];
  if (JSON.stringify(found) === JSON.stringify(expected)) continue;
  differences += 1;
  console.log(`${each.name}: ${JSON.stringify(expected)} is ${JSON.stringify(found)} in Zod`);
  each.expect = { ...each.expect, status: found.length ? 400 : 200, details: found };
}
console.log(`${cases.length} cases, ${differences} differ`);
if (process.argv.includes("--write")) writeFileSync(file, `${JSON.stringify(cases, null, 1)}\n`);
else process.exitCode = differences ? 1 : 0;
