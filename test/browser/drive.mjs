// Drives the pages in Chromium. Prints one line a check; exits 1 when one fails.
import { mkdirSync } from "node:fs";
import { attacks } from "./attacks.mjs";
import { auditLooks, browser, check, end, fits, listen, plan, seconds, seen } from "./browser.mjs";
import { flows } from "./flows.mjs";

const only = process.env.ONLY ?? "";
mkdirSync("shots", { recursive: true });

// visitor opens a context as a person.
async function visitor(base, person, options = {}) {
  const context = await browser.newContext({ baseURL: base, reducedMotion: "reduce", ...options });
  if (person) await context.addCookies([{ name: "handrail_login", value: plan.tokenPrefix + person, url: base, httpOnly: true, sameSite: "Strict" }]);
  const page = await context.newPage();
  listen(page);
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

// look loads a page once, and looks at it wide and narrow, in light and dark.
async function look(page, [name, where, , path]) {
  page.problems.length = 0;
  await page.emulateMedia({ colorScheme: "light", reducedMotion: "reduce" });
  await page.setViewportSize({ width: 1280, height: 860 });
  await page.goto(path, { waitUntil: "load" });
  if (name === "session-live") await page.waitForFunction(() => document.querySelector("term-view")?.term?.buffer.active.getLine(0)?.translateToString().includes("PRODUCTION"));
  await auditLooks(page, name, "shots/");
  await page.setViewportSize({ width: 360, height: 740 });
  await fits(page, `${name} at 360 px`);
  const asked = where === "frozen" ? /status of 503/ : name === "voucher-key-none" ? /status of 400/ : /nowhere|nobody|none|grants/.test(path) ? /status of 404/ : null;
  const bad = page.problems.filter((p) => !asked?.test(p));
  check(bad.length === 0, `${name}: the console is quiet`, bad.join("\n      "));
}

let looked = 0;

// Two people look at a time: while one page computes, the other loads.
const todo = pages.filter(([name]) => name.includes(only));
await Promise.all([0, 1].map(async () => {
  const visitors = {};
  for (let next; (next = todo.shift()); looked++) await look((visitors[next[1] + next[2]] ??= await visitor(plan[next[1]], next[2])), next);
  for (const page of Object.values(visitors)) await page.context().close();
}));
console.log(`${looked} pages looked at ${seen.audits} times with axe, ${seen.violations} violations, in ${seconds()} s`);

if (!only || only === "attacks") await attacks({ visitor, pages });
if (!only || only === "flows") await flows({ visitor, look: { viewport: { width: 1280, height: 860 } } });
console.log(`all of it took ${seconds()} s`);
await end();
