// Drives the pages in Chromium. Prints one line a check; exits 1 when one fails.
import { createRequire } from "node:module";
import { mkdirSync, readFileSync } from "node:fs";
import { chromium } from "playwright-core";
import { flows } from "./flows.mjs";

const plan = JSON.parse(process.argv[2]);
const only = process.env.ONLY ?? "";
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
mkdirSync("shots", { recursive: true });

let failed = 0;
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
  ["noshells-home", "noShells", "admin", "/"],
  ["noshells-host", "noShells", "admin", "/hosts/thinkpad"],
];
const looks = [
  ["wide-light", { colorScheme: "light", viewport: { width: 1280, height: 860 } }],
  ["wide-dark", { colorScheme: "dark", viewport: { width: 1280, height: 860 } }],
  ["narrow-light", { colorScheme: "light", viewport: { width: 390, height: 800 } }],
  ["narrow-dark", { colorScheme: "dark", viewport: { width: 390, height: 800 } }],
];

async function audit(page, name) {
  await page.evaluate(axe);
  const found = await page.evaluate(() => axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }));
  for (const v of found.violations) check(false, `${name}: axe ${v.id}: ${v.help}`, v.nodes.slice(0, 4).map((n) => n.target.join(" ") + " :: " + (n.any[0]?.message ?? n.failureSummary)).join("\n      "));
  return found.violations.length;
}

let audited = 0, violations = 0;
for (const [look, options] of looks) {
  const visitors = {};
  for (const [name, where, person, path] of pages) {
    if (only && !`${name}-${look}`.includes(only)) continue;
    const page = (visitors[where + person] ??= await visitor(plan[where], person, options));
    page.problems.length = 0;
    await page.goto(path, { waitUntil: "load" });
    if (name === "session-live") await page.locator(".xterm-rows, .xterm-screen canvas").first().waitFor();
    if (name === "session-live") await page.waitForFunction(() => document.querySelector("term-view")?.term?.buffer.active.getLine(0)?.translateToString().includes("PRODUCTION"));
    violations += await audit(page, `${name} ${look}`);
    audited++;
    const over = () => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    check((await over()) <= 0, `${name} ${look} is not wider than its window`);
    if (look === "narrow-light") {
      await page.setViewportSize({ width: 360, height: 740 });
      const wide = await over();
      check(wide <= 0, `${name} at 360 px is ${wide} px too wide`);
      await page.setViewportSize(options.viewport);
    }
    const bad = page.problems.filter((p) => !(path === "/nowhere" || path === "/hosts/nobody" || path === "/login" || path.includes("grants")) || !/status of (404|401)/.test(p));
    check(bad.filter((p) => !(path === "/login" && /401/.test(p))).length === 0, `${name} ${look}: the console is quiet`, bad.join("\n      "));
    await page.screenshot({ path: `shots/${name}-${look}.png`, fullPage: true });
  }
  for (const page of Object.values(visitors)) await page.context().close();
}
console.log(`${audited} pages audited with axe, ${violations} violations`);

if (!only || only === "flows") await flows({ plan, visitor, check, audit, look: looks[0][1] });
await browser.close();
if (failed) console.log(`${failed} checks failed`);
process.exit(failed ? 1 : 0);
