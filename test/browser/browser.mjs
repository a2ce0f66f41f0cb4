// What every driver of these pages has: the browser, a check that prints and
// counts what fails, an ear at the console, and a look with axe. A driver gets its
// plan as its first argument and ends with end().
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

export const plan = JSON.parse(process.argv[2]);
export const browser = await chromium.launch({
  executablePath: plan.chromium,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

let failed = 0;
export function check(ok, what, more = "") {
  if (!ok) failed++;
  if (!ok || process.env.VERBOSE) console.log((ok ? "ok    " : "FAIL  ") + what + (more ? "\n      " + more : ""));
}

const started = Date.now();
export const seconds = () => ((Date.now() - started) / 1000).toFixed(1);

// The terminal says when this machine was slow: no fault of a page.
const slow = /^task queue exceeded allotted deadline by \d+ms$/;

// listen gives a page its problems: each error and warning of the console, among
// them each breach of the content security policy, where ours says that it counts.
export function listen(page, ours = () => true) {
  page.problems = [];
  const heard = (text) => page.problems.push(`${text} (${page.url()})`);
  page.on("console", (m) => ["error", "warning"].includes(m.type()) && !slow.test(m.text()) && ours() && heard(m.text()));
  page.on("pageerror", (e) => heard(String(e)));
}

const looks = [["wide-light", "light", 1280, 860], ["wide-dark", "dark", 1280, 860], ["narrow-dark", "dark", 390, 800], ["narrow-light", "light", 390, 800]];
const everything = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
export const seen = { audits: 0, violations: 0 };

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

// audit asks axe about the page as it stands, and counts.
export async function audit(page, name, runOnly = everything) {
  if (!(await page.evaluate(() => "axe" in window))) await page.evaluate(axe);
  const { violations } = await page.evaluate((runOnly) => axe.run(document, { runOnly, resultTypes: ["violations"] }), runOnly);
  for (const v of violations) check(false, `${name}: axe ${v.id}: ${v.help}`, v.nodes.slice(0, 4).map((n) => n.target.join(" ") + " :: " + (n.any[0]?.message ?? n.failureSummary)).join("\n      "));
  seen.audits++;
  seen.violations += violations.length;
}

// fits checks that nobody has to scroll sideways.
export async function fits(page, name) {
  const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  check(over <= 0, `${name} is ${over} px too wide`);
}

// In the dark the same document has other colours and nothing else, so only what
// depends on them is looked at anew.
const colours = { type: "rule", values: ["color-contrast", "link-in-text-block"] };

// auditLooks is audit and fits wide and narrow, in light and dark. With SHOTS it
// leaves pictures in folder.
export async function auditLooks(page, name, folder) {
  for (const [look, colorScheme, width, height] of looks) {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    await page.setViewportSize({ width, height });
    await audit(page, `${name} ${look}`, colorScheme === "light" ? everything : colours);
    await fits(page, `${name} ${look}`);
    if (process.env.SHOTS) await page.screenshot({ path: `${folder}${name}-${look}.png`, fullPage: true });
  }
  await page.emulateMedia({ colorScheme: "light", reducedMotion: "reduce" });
  await page.setViewportSize({ width: 1280, height: 860 });
}

// withPasskey is a page of a browser of its own, with an authenticator that needs
// no finger.
export async function withPasskey(baseURL) {
  const context = await browser.newContext({ baseURL, reducedMotion: "reduce", viewport: { width: 1280, height: 860 } });
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  listen(page);
  const cdp = await context.newCDPSession(page);
  await cdp.send("WebAuthn.enable");
  await cdp.send("WebAuthn.addVirtualAuthenticator", {
    options: { protocol: "ctap2", transport: "internal", hasResidentKey: true, hasUserVerification: true, isUserVerified: true, automaticPresenceSimulation: true },
  });
  return page;
}

// screenOf is the text of the terminal on a page.
export const screenOf = (page) => page.evaluate(() => {
  const buffer = document.querySelector("term-view, replay-view")?.term?.buffer.active;
  return buffer ? Array.from({ length: buffer.length }, (_, i) => buffer.getLine(i).translateToString(true)).join("\n").trim() : "";
});
// shows waits until that terminal shows a text.
export const shows = (page, text) => page.waitForFunction((want) => {
  const buffer = document.querySelector("term-view, replay-view")?.term?.buffer.active;
  // A long line is wrapped: look at the text as if it were not.
  return buffer && Array.from({ length: buffer.length }, (_, i) => (buffer.getLine(i).isWrapped ? "" : "\n") + buffer.getLine(i).translateToString(true)).join("").includes(want);
}, text).catch(async () => { throw new Error(`the terminal does not show ${JSON.stringify(text)}:\n${await screenOf(page)}`); });

export async function end() {
  await browser.close();
  if (failed) console.log(`${failed} checks failed`);
  process.exit(failed ? 1 : 0);
}
