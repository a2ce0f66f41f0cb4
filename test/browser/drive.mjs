// Drives the pages in Chromium. Prints one line a check; exits 1 when one fails.
import { createRequire } from "node:module";
import { mkdirSync, readFileSync } from "node:fs";
import { chromium } from "playwright-core";
import { attacks } from "./attacks.mjs";
import { flows } from "./flows.mjs";

const plan = JSON.parse(process.argv[2]);
const only = process.env.ONLY ?? "";
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
mkdirSync("shots", { recursive: true });

let failed = 0;
const started = Date.now();
const seconds = () => ((Date.now() - started) / 1000).toFixed(1);
export function check(ok, what, more = "") {
  if (!ok) failed++;
  if (!ok || process.env.VERBOSE) console.log((ok ? "ok    " : "FAIL  ") + what + (more ? "\n      " + more : ""));
}

const browser = await chromium.launch({
  executablePath: plan.chromium,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

// visit opens a context as a person, and fails on any console error: among
// them each breach of the content security policy.
async function visitor(base, person, options = {}) {
  const context = await browser.newContext({ baseURL: base, reducedMotion: "reduce", ...options });
  if (person) await context.addCookies([{ name: "handrail_login", value: plan.tokenPrefix + person, url: base, httpOnly: true, sameSite: "Strict" }]);
  const page = await context.newPage();
  page.problems = [];
  page.on("console", (m) => ["error", "warning"].includes(m.type()) && page.problems.push(m.text()));
  page.on("pageerror", (e) => page.problems.push(String(e)));
  return page;
}

const pages = [
  ["home", "busy", "ada", "/"],
  ["hosts", "busy", "ada", "/hosts"],
  ["hosts-none", "busy", "ada", "/hosts?q=nothing"],
  ["host", "busy", "ada", "/hosts/db-1"],
  ["host-offline", "busy", "ada", "/hosts/build-1"],
  ["host-write", "busy", "ada", "/hosts/staging-1"],
  ["host-agentless", "busy", "ada", "/hosts/edge-7"],
  ["host-visited", "busy", "ada", "/hosts/edge-8"],
  ["sessions", "busy", "ada", "/sessions"],
  ["session-live", "busy", "ada", "/sessions/s-4f9k2m7x"],
  ["session-ended", "busy", "ada", "/sessions/s-9b3n7m1q"],
  ["session-refused", "busy", "ada", "/sessions/s-1t5y9u3i"],
  ["approvals", "busy", "ada", "/approvals"],
  ["approval", "busy", "ada", "/approvals/a-6y1u8i4o"],
  ["approval-device", "busy", "linus", "/approvals/a-6y1u8i4o"],
  ["approval-own", "busy", "ada", "/approvals/a-2q9w4e1r"],
  ["approval-done", "busy", "ada", "/approvals/a-3e7r2t5w"],
  ["grant-glass", "busy", "ada", "/grants/g-8d3f1k6q"],
  ["grant-mine", "busy", "ada", "/grants/g-1a6s3d9f"],
  ["grant-review", "busy", "ada", "/grants/g-4j8l2z6x"],
  ["people", "busy", "ada", "/people"],
  ["person-access", "busy", "ada", "/people/ada/access"],
  ["host-access", "busy", "ada", "/hosts/db-1/access"],
  ["inspect", "busy", "ada", "/hosts/db-1/inspect?what=stacks&target=api"],
  ["grant-asked", "busy", "ada", "/grants/g-5v2b7n3m"],
  ["servers", "busy", "ada", "/servers"],
  ["drills", "busy", "ada", "/drills"],
  ["voucher-key", "busy", "ada", "/vouchers/key?key=ssh-ed25519%20AAAA%20ada@laptop"],
  ["voucher-key-none", "busy", "grace", "/vouchers/key"],
  ["webhooks", "busy", "ada", "/webhooks"],
  ["webhook", "busy", "ada", "/webhooks/siem"],
  ["webhook-retrying", "busy", "ada", "/webhooks/chat"],
  ["webhook-disabled", "busy", "ada", "/webhooks/tickets-of-the-operations-department"],
  ["webhook-asked", "busy", "ada", "/webhooks/pager"],
  ["search", "busy", "ada", "/sessions/search"],
  ["session-moment", "busy", "ada", "/sessions/s-9b3n7m1q?at=12.5s"],
  ["policy", "busy", "ada", "/policy?person=linus&action=sessions.open&host=db-1&level=write"],
  ["ledger", "busy", "ada", "/ledger"],
  ["entry", "busy", "ada", "/ledger/20"],
  ["entry-erased", "busy", "ada", "/ledger/40"],
  ["code", "busy", "ada", "/code"],
  ["me", "busy", "ada", "/me"],
  ["not-found", "busy", "ada", "/nowhere"],
  ["no-host", "busy", "ada", "/hosts/nobody"],
  ["login", "busy", "", "/login"],
  ["login-link", "busy", "", "/login?t=link-of-ada"],
  ["welcome-passkey", "busy", "linus", "/welcome"],
  ["fresh-welcome", "fresh", "admin", "/welcome"],
  ["fresh-home", "fresh", "admin", "/"],
  ["fresh-sessions", "fresh", "admin", "/sessions"],
  ["fresh-approvals", "fresh", "admin", "/approvals"],
  ["fresh-people", "fresh", "admin", "/people"],
  ["fresh-webhooks", "fresh", "admin", "/webhooks"],
  ["fresh-drills", "fresh", "admin", "/drills"],
  ["frozen", "frozen", "ada", "/hosts/db-1"],
  ["frozen-login", "frozen", "", "/login"],
  ["noshells-home", "noShells", "admin", "/"],
  ["noshells-host", "noShells", "admin", "/hosts/thinkpad"],
];
// What people see, and what depends on it alone: colours. In the dark the same
// document has other colours and nothing else, so only those are looked at anew.
const everything = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
const colours = { type: "rule", values: ["color-contrast", "link-in-text-block"] };

async function audit(page, name, runOnly = everything) {
  if (!(await page.evaluate(() => "axe" in window))) await page.evaluate(axe);
  const found = await page.evaluate((runOnly) => axe.run(document, { runOnly, resultTypes: ["violations"] }), runOnly);
  for (const v of found.violations) check(false, `${name}: axe ${v.id}: ${v.help}`, v.nodes.slice(0, 4).map((n) => n.target.join(" ") + " :: " + (n.any[0]?.message ?? n.failureSummary)).join("\n      "));
  audits++;
  violations += found.violations.length;
}

// look loads a page once, and looks at it wide and narrow, in light and dark.
async function look(page, [name, where, , path]) {
  page.problems.length = 0;
  await page.emulateMedia({ colorScheme: "light", reducedMotion: "reduce" });
  await page.setViewportSize({ width: 1280, height: 860 });
  await page.goto(path, { waitUntil: "load" });
  if (name === "session-live") await page.waitForFunction(() => document.querySelector("term-view")?.term?.buffer.active.getLine(0)?.translateToString().includes("PRODUCTION"));
  const over = () => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  for (const [look, colorScheme, width, height] of looks) {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    await page.setViewportSize({ width, height });
    await audit(page, `${name} ${look}`, colorScheme === "light" ? everything : colours);
    check((await over()) <= 0, `${name} ${look} is not wider than its window`);
    if (process.env.SHOTS) await page.screenshot({ path: `shots/${name}-${look}.png`, fullPage: true });
  }
  await page.setViewportSize({ width: 360, height: 740 });
  const wide = await over();
  check(wide <= 0, `${name} at 360 px is ${wide} px too wide`);
  const asked = where === "frozen" ? /status of 503/ : name === "voucher-key-none" ? /status of 400/ : /nowhere|nobody|none|grants/.test(path) ? /status of 404/ : null;
  const bad = page.problems.filter((p) => !asked?.test(p));
  check(bad.length === 0, `${name}: the console is quiet`, bad.join("\n      "));
}

const looks = [["wide-light", "light", 1280, 860], ["wide-dark", "dark", 1280, 860], ["narrow-dark", "dark", 390, 800], ["narrow-light", "light", 390, 800]];
let audits = 0, violations = 0, looked = 0;

// Two people look at a time: while one page computes, the other loads.
const todo = pages.filter(([name]) => name.includes(only));
await Promise.all([0, 1].map(async () => {
  const visitors = {};
  for (let next; (next = todo.shift()); looked++) await look((visitors[next[1] + next[2]] ??= await visitor(plan[next[1]], next[2])), next);
  for (const page of Object.values(visitors)) await page.context().close();
}));
console.log(`${looked} pages looked at ${audits} times with axe, ${violations} violations, in ${seconds()} s`);

if (!only || only === "attacks") await attacks({ plan, visitor, check, pages });
if (!only || only === "flows") await flows({ plan, visitor, check, audit, look: { viewport: { width: 1280, height: 860 } } });
console.log(`all of it took ${seconds()} s`);
await browser.close();
if (failed) console.log(`${failed} checks failed`);
process.exit(failed ? 1 : 0);
