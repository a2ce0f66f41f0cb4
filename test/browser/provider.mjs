// Logs in at a real provider by the page of the real program, in Chromium.
// Prints each check that fails and exits with 1.
import { createRequire } from "node:module";
import { mkdirSync, readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const plan = JSON.parse(process.argv[2]);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const shots = "shots/provider/";
mkdirSync(shots, { recursive: true });

let failed = 0, audits = 0;
function check(ok, what, more = "") {
  if (!ok) failed++;
  if (!ok || process.env.VERBOSE) console.log((ok ? "ok    " : "FAIL  ") + what + (more ? "\n      " + more : ""));
}

const browser = await chromium.launch({
  executablePath: plan.chromium,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const context = await browser.newContext({ baseURL: plan.page, reducedMotion: "reduce", viewport: { width: 1280, height: 860 } });
const page = await context.newPage();
page.setDefaultTimeout(30_000);
const problems = [];
page.on("console", (m) => ["error", "warning"].includes(m.type()) && page.url().startsWith(plan.page) && problems.push(`${m.text()} (${page.url()})`));
page.on("pageerror", (e) => problems.push(`${e} (${page.url()})`));

const looks = [["wide-light", "light", 1280, 860], ["wide-dark", "dark", 1280, 860], ["narrow-dark", "dark", 390, 800], ["narrow-light", "light", 390, 800]];
const rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
async function audit(name) {
  if (!(await page.evaluate(() => "axe" in window))) await page.evaluate(axe);
  for (const [look, colorScheme, width, height] of looks) {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    await page.setViewportSize({ width, height });
    const found = await page.evaluate((runOnly) => axe.run(document, { runOnly, resultTypes: ["violations"] }), rules);
    audits++;
    for (const v of found.violations) check(false, `${name} ${look}: axe ${v.id}: ${v.help}`, v.nodes.slice(0, 3).map((n) => n.target.join(" ")).join("\n      "));
    const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    check(over <= 0, `${name} ${look} is ${over} px too wide`);
    await page.screenshot({ path: `${shots}${name}-${look}.png`, fullPage: true });
  }
  await page.setViewportSize({ width: 1280, height: 860 });
}

const button = () => page.getByRole("link", { name: "Log in with Example ID" });
const atProvider = () => page.waitForURL((u) => u.href.startsWith(plan.issuer));
const cookies = async () => (await context.cookies(plan.page)).map((c) => c.name).sort();

await page.goto("/login?next=" + encodeURIComponent("/hosts?q=env%3Adev"));
await button().waitFor();
check(await page.getByRole("button", { name: "Use your passkey" }).isVisible(), "the passkey is still offered");
await audit("login");

// Somebody cancels there.
await button().click();
await atProvider();
await page.getByRole("button", { name: "Cancel" }).click();
await page.waitForURL("**/login/provider/back?*");
check(/it, or you, refused/.test(await page.locator("main").textContent()), "a cancelled login says so", await page.locator("main").textContent());
check(!/said the person/.test(await page.content()), "the provider's words are not repeated");
await audit("cancelled");
check((await cookies()).length === 0, "the ticket is gone", String(await cookies()));
problems.length = 0; // the browser names the page's status

// And logs in.
await page.goto("/login?next=" + encodeURIComponent("/hosts?q=env%3Adev"));
await button().click();
await atProvider();
const asked = page.url();
await page.getByLabel("Who are you?").fill("1815");
await page.getByRole("button", { name: "Log in" }).click();
await page.waitForURL("**/hosts?q=env%3Adev");
check((await page.locator(".you-name").textContent()) === "ada", "the page calls her by name");
const login = (await context.cookies(plan.page)).find((c) => c.name === "handrail_login");
check(login?.httpOnly && login?.sameSite === "Strict", "the login's cookie is strict", JSON.stringify(login));
check(!(await cookies()).includes("handrail_provider"), "the ticket is spent");
await page.goto("/me");
check(/developer, operator/.test(await page.locator("main").textContent()), "the claim's group is hers");
check(/--root-key/.test(await page.locator("main").textContent()), "the page says how a terminal logs in", await page.locator("main").textContent());
await audit("me");

// What came back once is worth nothing again: without its ticket, or with another's.
const back = new URL("/login/provider/back", plan.page);
back.search = new URLSearchParams({ state: "x", code: "y", iss: plan.issuer });
await page.goto(back.href);
check(/begun too long ago, or somewhere else/.test(await page.locator("main").textContent()), "an answer nobody asked for is refused", await page.locator("main").textContent());

// Another browser is shown the line for a terminal.
await page.goto("/login/provider/paste?state=s&code=c");
check(/You did not start that/.test(await page.locator("main").textContent()), "the line for a terminal warns");
await audit("paste");
problems.splice(0, problems.length, ...problems.filter((p) => !/status of 40[13]/.test(p)));
check(problems.length === 0, "the console is quiet", problems.join("\n      "));
check(asked.startsWith(plan.issuer), "the question went to the provider");

console.log(`${audits} looks with axe`);
await browser.close();
if (failed) console.log(`${failed} checks failed`);
process.exit(failed ? 1 : 0);
