// Logs in at a real provider by the page of the real program, in Chromium.
// Prints each check that fails and exits with 1.
import { mkdirSync } from "node:fs";
import { auditLooks, browser, check, end, listen, plan, seen } from "./browser.mjs";

const shots = "shots/provider/";
mkdirSync(shots, { recursive: true });

const context = await browser.newContext({ baseURL: plan.page, reducedMotion: "reduce", viewport: { width: 1280, height: 860 } });
const page = await context.newPage();
page.setDefaultTimeout(30_000);
listen(page, () => page.url().startsWith(plan.page));

const audit = (name) => auditLooks(page, name, shots);

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
page.problems.length = 0; // the browser names the page's status

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
const bad = page.problems.filter((p) => !/status of 40[13]/.test(p));
check(bad.length === 0, "the console is quiet", bad.join("\n      "));
check(asked.startsWith(plan.issuer), "the question went to the provider");

console.log(`${seen.audits} looks with axe`);
await end();
