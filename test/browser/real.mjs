// Walks the story in Chromium against the real program: two people, each in a
// browser of their own with a passkey, and one stock ssh client. Prints each
// check that fails and exits with 1. Nothing waits for a time, only for what
// must happen.
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { auditLooks, browser, check, end, plan, screenOf, seconds, seen, shows, withPasskey } from "./browser.mjs";

const base = new URL(plan.link).origin;
const shots = "shots/real/";
const first = "ada";
const second = "grace-of-the-night-shift.hopper1"; // as long as a name may be
mkdirSync(shots, { recursive: true });

const people = [];
// visitor is one person's browser.
async function visitor() {
  const page = await withPasskey(base);
  people.push(page);
  return page;
}

// audit looks at the page as it stands, with the data that it shows, in light
// and dark, wide and narrow.
const audit = (page, name) => auditLooks(page, name, shots);

const follows = (page) => page.waitForFunction(() => document.querySelector("#live")?.dataset.state === "live");

async function enter(page, link, name) {
  await page.goto(link);
  await audit(page, `${name ? "first" : "second"}-link`);
  await page.getByRole("button", { name: "Open handrail" }).click();
  await page.waitForURL("**/welcome");
  if (name) {
    await audit(page, "first-name");
    await page.getByLabel("Your login name").fill(name);
    await page.keyboard.press("Enter");
    await page.waitForURL("**/welcome?step=passkey");
  }
  await audit(page, `${name ? "first" : "second"}-passkey`);
  await page.getByRole("button", { name: "Make a passkey" }).click();
  await page.waitForURL((u) => u.pathname === "/");
  check(await page.getByText("Passkey saved.").isVisible(), "a passkey is made");
}

let host; // the name of this host

async function look(ada) {
  await enter(ada, plan.link, first);
  check((await ada.locator(".you-name").textContent()) === first, "the page calls the first person by name");
  const row = ada.locator(".hosts-table tbody tr").first();
  await row.locator(".gauge meter").first().waitFor();
  host = await row.locator(".row-link").textContent();
  check(/online/.test(await row.textContent()), "home shows this host online, with facts", await row.textContent());
  await follows(ada);
  await audit(ada, "home-first");
  await ada.goto("/hosts/" + host);
  await ada.locator("#host-facts dl.facts dt", { hasText: "Kernel" }).waitFor();
  await audit(ada, "host-first");
  await ada.goto("/");
}

// freshFacts waits, beside the story, until an open page of the host tells
// newer facts without a reload.
async function freshFacts(ada) {
  const context = await browser.newContext({ baseURL: base, storageState: await ada.context().storageState() });
  const page = await context.newPage();
  await page.goto("/hosts/" + host);
  await follows(page);
  const before = await page.locator("#host-facts dd time").last().getAttribute("datetime");
  await page.waitForFunction((then) => [...document.querySelectorAll("#host-facts dd time")].at(-1).dateTime !== then, before, { timeout: 40_000 });
  await context.close();
}

async function readShell(ada) {
  await ada.getByRole("button", { name: "Open a read-only shell" }).click();
  await ada.waitForURL("**/sessions/s-*");
  await shows(ada, "$");
  const banner = await screenOf(ada);
  check(/read-only/.test(banner) && new RegExp(host).test(banner) && /\d(h\d*m?| min) left/.test(banner), "the banner says host, level and time left", banner);
  check(/\bdev\b.*\bread\b/.test(banner) && banner.includes(first + "@"), "the prompt says environment and level", banner);
  await ada.keyboard.type("whoami\r");
  await shows(ada, `\n${first}\n`);
  await ada.keyboard.type("touch /etc/x\r");
  await shows(ada, "touch: ");
  const notice = ada.locator(".term-notice", { hasText: "read-only" });
  await notice.waitFor();
  const text = await notice.textContent();
  check(text.includes("handrail elevate " + host) && text.includes("/etc/x"), "the first refusal says why and what to do", text);
  check(!existsSync("/etc/x"), "and nothing was written");
  await audit(ada, "read-shell");
  await ada.keyboard.type("exit\r");
  await ada.getByRole("button", { name: "See the recording" }).click();
  await ada.getByRole("button", { name: /Play the recording/ }).waitFor();
  await audit(ada, "read-ended");
}

async function secondPerson(ada) {
  await ada.goto("/");
  const field = ada.getByLabel("Name of the second person");
  check((await field.inputValue()) !== "", "the tile has a name ready");
  await field.fill(second);
  await ada.getByRole("button", { name: "Make a person" }).click();
  await ada.getByText(`It logs ${second} in once.`).waitFor();
  await audit(ada, "second-made");
  const link = await ada.locator(".command code").first().textContent();
  const grace = await visitor();
  await enter(grace, link.trim(), "");
  check((await grace.locator(".you-name").textContent()) === second, "the second person is who the tile named");
  await audit(grace, "home-second");
  return grace;
}

async function jump(ada, grace) {
  await grace.goto("/approvals");
  await follows(grace);
  await audit(grace, "approvals-none");
  await ada.goto("/hosts/" + host + "#elevate");
  await ada.locator("#elevate textarea").fill("The disk of the shop is full: rotate its logs, then grow the volume");
  await ada.locator("#elevate input[name=ticket]").fill("OPS-7");
  await ada.locator("#elevate").getByRole("button", { name: "Ask", exact: true }).click();
  await ada.waitForURL("**/approvals/a-*");
  await ada.getByRole("heading", { name: "Waits for a second person" }).waitFor();
  check((await ada.getByRole("button", { name: /Approve/ }).count()) === 0, "the requester is offered no approval");
  await audit(ada, "approval-own");
  await grace.getByText("waits for you").waitFor();
  check(true, "the second person sees the request without a reload");
  await audit(grace, "approvals-waiting");
  await grace.locator(".approvals-table .row-link").first().click();
  await grace.getByRole("heading", { name: "What it grants" }).waitFor();
  check(await grace.getByRole("heading", { name: "What handrail cannot contain" }).isVisible(), "and what it cannot contain");
  check(await grace.getByText("rotate its logs").first().isVisible(), "and the reason");
  await audit(grace, "approval-asked");
  await approveOwn(ada, await grace.locator("[data-approval]").getAttribute("data-hash"));
  await grace.getByRole("button", { name: "Approve with your passkey" }).click();
  await grace.getByText("Approved, and signed with your passkey.").waitFor();
  await ada.getByRole("heading", { name: "It is in force" }).waitFor();
  check(true, "the requester sees the approval without a reload");
  await audit(ada, "approval-given");
}

// approveOwn makes the button that the page does not offer: nobody is asked for
// a passkey in vain. Then it goes past the pages, and signs with the requester's
// own passkey: the server must refuse, whatever a page shows.
async function approveOwn(ada, hash) {
  const id = new URL(ada.url()).pathname.split("/").pop();
  await ada.evaluate(([approval, hash]) => {
    const section = Object.assign(document.createElement("section"), { innerHTML: '<button data-passkey="approve">forged</button><p class="passkey-said"></p>' });
    Object.assign(section.dataset, { approval, hash });
    document.querySelector("main").append(section);
  }, [id, hash]);
  const refused = ada.waitForResponse((r) => r.url().endsWith("/sign"));
  await ada.getByRole("button", { name: "forged" }).click();
  check((await refused).status() === 403, "the requester is not asked for a passkey", await (await refused).text());
  await ada.locator(".passkey-said", { hasText: /\w/ }).waitFor();
  const login = (await ada.context().cookies()).find((c) => c.name === "handrail_login").value;
  const begun = await ada.request.post(base + "/handrail.v1.Approvals/SignBegin", { headers: { Authorization: "Bearer " + login }, data: { id } });
  const status = await ada.evaluate(async ([id, hash, { optionsJson, ceremony }]) => {
    const options = JSON.parse(optionsJson);
    const signed = await navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(options.publicKey ?? options) });
    const body = JSON.stringify({ ceremony, hash, response: JSON.stringify(signed) });
    return (await fetch(`/approvals/${id}/approve`, { method: "POST", headers: { "Content-Type": "application/json", Accept: "application/json" }, body })).status;
  }, [id, hash, await begun.json()]);
  check(status === 403, "the requester's own approval is refused", String(status));
  await ada.evaluate(() => document.querySelector("[data-approval]").remove());
  ada.problems = ada.problems.filter((p) => !/status of 403/.test(p)); // those were asked for
}

async function writeShell(ada, grace) {
  await grace.goto("/sessions");
  await follows(grace);
  await ada.goto("/hosts/" + host);
  await audit(ada, "host-may-write");
  await ada.goto("/");
  await audit(ada, "home-may-write");
  await ada.getByRole("button", { name: "Write shell" }).first().click();
  await ada.waitForURL("**/sessions/s-*");
  await shows(ada, "WRITE");
  await ada.keyboard.type(`echo hello > ${plan.folder}/written && echo wro''te\r`);
  await shows(ada, "\nwrote");
  check(readFileSync(plan.folder + "/written", "utf8") === "hello\n", "the write session wrote the file");
  await ada.keyboard.type("id -un\r");
  await shows(ada, "\nhandrail-write");
}

async function buddy(ada, grace) {
  await grace.locator("#sessions-live tr", { hasText: first + " on " + host }).filter({ hasText: "live" }).first().waitFor();
  check(true, "a session appears in the list without a reload");
  await audit(grace, "sessions-live");
  await grace.locator("#sessions-live tbody .row-link").first().click();
  await shows(grace, "\nwrote");
  check((await grace.locator(".term-bar strong").textContent()) === "watching", "the second person watches");
  await ada.locator("#session-live li", { hasText: "watching" }).waitFor();
  check(true, "and the first sees who watches");
  await audit(grace, "watching");
  await audit(ada, "watched");
  await ada.locator(".xterm").click();
  await ada.keyboard.type("echo li''ve\r");
  await shows(grace, "\nlive");
  await grace.getByRole("button", { name: "Join" }).click();
  await grace.getByText("joined: your keys count").waitFor();
  await grace.keyboard.type("echo jo''ined\r");
  await shows(ada, "\njoined");
  await audit(grace, "joined");
  await grace.getByRole("button", { name: "Pause" }).click();
  await grace.getByText("Paused. Nothing in the session runs").waitFor();
  await ada.locator(".term-bar strong", { hasText: "paused" }).waitFor();
  check(true, "the first person sees the pause");
  await audit(ada, "paused");
  await audit(grace, "paused-watching");
  await grace.getByRole("button", { name: "Resume" }).click();
  await grace.getByText("Resumed.").waitFor();
  await ada.locator(".term-bar strong", { hasText: "your session" }).waitFor();
  await grace.getByRole("button", { name: "Stop" }).click();
  await grace.getByText("Stopped. Every process").waitFor();
  await ada.getByRole("button", { name: "See the recording" }).waitFor();
  const why = await ada.locator(".term-notice").textContent();
  check(/stopped by \S+\./.test(why), "who stopped it is said in the terminal", why);
  await audit(ada, "stopped");
  await grace.getByRole("button", { name: /Play the recording/ }).waitFor();
  await audit(grace, "stopped-watching");
}

async function replay(grace) {
  await grace.getByRole("button", { name: /Play the recording/ }).click();
  const chapters = grace.locator(".replay-side li button");
  await chapters.first().waitFor();
  const all = await chapters.allTextContents();
  check(all.some((c) => c.includes("written")) && all.some((c) => c.includes("id -un")), "the commands are chapters", all.join(" | "));
  await chapters.filter({ hasText: "jo''ined" }).click();
  await shows(grace, "\njoined");
  await grace.getByLabel("Position").focus();
  await grace.keyboard.press("Home");
  await grace.waitForFunction(() => {
    const buffer = document.querySelector("replay-view").term.buffer.active;
    return !Array.from({ length: buffer.length }, (_, i) => buffer.getLine(i).translateToString(true)).join("\n").includes("\njoined");
  });
  check(true, "seek goes back");
  await grace.keyboard.press("End");
  await shows(grace, "\njoined");
  await audit(grace, "replay");
}

const places = () => ["/", "/hosts", "/hosts/" + host, "/sessions", "/approvals", "/people", "/policy", "/ledger", "/code", "/me"];

async function glass(ada, grace) {
  await grace.goto("/people");
  await follows(grace);
  await ada.goto("/hosts/" + host);
  await ada.locator("summary", { hasText: "Break the glass" }).click();
  const form = ada.locator("details.danger form");
  await form.locator("textarea").fill("The shop is down and nobody answers");
  await form.getByLabel(/to confirm/).fill(host);
  await audit(ada, "glass-form");
  await form.getByRole("button", { name: "Break the glass" }).click();
  await ada.waitForURL("**/grants/g-*");
  const grant = new URL(ada.url()).pathname;
  await grace.locator(".banner.loud", { hasText: "BREAK-GLASS" }).waitFor();
  check(true, "break-glass is loud on a page that was open already");
  await audit(ada, "glass");
  for (const [who, page] of [["the first", ada], ["the second", grace]]) {
    for (const place of places()) {
      await page.goto(place);
      const banner = page.locator(".banner.loud");
      check((await banner.count()) > 0 && (await banner.first().textContent()).includes("BREAK-GLASS: " + first), `${place} of ${who} is loud`);
    }
  }
  await grace.goto("/");
  await audit(grace, "home-glass");
  await grace.goto("/approvals");
  await audit(grace, "approvals-glass");
  await ada.goto(grant);
  await ada.getByRole("button", { name: "Write shell on " + host }).click();
  await shows(ada, "BREAK-GLASS");
  await shows(ada, "WRITE");
  await audit(ada, "glass-shell");
  await ada.goto(grant);
  await ada.getByRole("button", { name: "I am done" }).click();
  await ada.getByText("Somebody else closes this review").waitFor();
  await audit(ada, "review-own");
  await grace.goto(grant);
  await grace.getByLabel("justified", { exact: true }).check();
  await grace.getByLabel("What you saw, and what follows").fill("The shop was down; the log shows one restart");
  await audit(grace, "review");
  await grace.getByRole("button", { name: "Close the review" }).click();
  await grace.waitForFunction(() => document.querySelector("#grant-live .state") && !document.querySelector("#grant-live .is-in-review"));
  await audit(grace, "reviewed");
  check((await grace.locator(".banner.loud").count()) === 0, "and calm again when it is over");
}

// terminal is a stock ssh client without certificate, in a terminal of its own.
function terminal() {
  const [, port] = plan.ssh.split(":");
  const line = `ssh -F /dev/null -o PubkeyAuthentication=no -o IdentityAgent=none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -p ${port} ${host}@localhost`;
  const child = spawn("script", ["-q", "-f", "-e", "-c", line, "/dev/null"], { env: { ...process.env, TERM: "xterm-256color" } });
  const t = { child, text: "", wake: [] };
  const take = (b) => { t.text += b; t.wake.splice(0).forEach((f) => f()); };
  child.stdout.on("data", take);
  child.stderr.on("data", take);
  t.ended = new Promise((ok) => child.on("exit", (code) => { t.code = code; take(""); ok(code); }));
  t.until = async (pattern) => {
    const late = setTimeout(() => { t.late = true; take(""); }, 20_000);
    for (;;) {
      const found = pattern.exec(t.text);
      if (found) { clearTimeout(late); return found; }
      if (t.late || t.code !== undefined) throw new Error(`ssh does not show ${pattern}:\n${t.text}`);
      await new Promise((ok) => t.wake.push(ok));
    }
  };
  return t;
}

async function code(ada) {
  const ssh = terminal();
  try {
    const [, url] = await ssh.until(/(http\S+\/code\S*)/);
    const [, word] = await ssh.until(/\b([0-9A-Z]{4}-[0-9A-Z]{4})\b/);
    await ada.goto(url);
    await audit(ada, "code");
    await ada.getByLabel("Code").fill("0000-0000");
    await ada.keyboard.press("Enter");
    await ada.locator("#code-wrong").waitFor();
    await audit(ada, "code-wrong");
    ada.problems = ada.problems.filter((p) => !/status of 4\d\d/.test(p)); // that one was asked for
    await ada.getByLabel("Code").fill(word.toLowerCase());
    await ada.keyboard.press("Enter");
    await ada.getByRole("heading", { name: "Is this you?" }).waitFor();
    const said = await ada.locator("dl.facts").textContent();
    check(said.includes("127.0.0.1") || said.includes("::1"), "the page shows where the client comes from", said);
    check(said.includes(host) && said.includes("read"), "and what it wants", said);
    await audit(ada, "code-confirm");
    await ada.getByRole("button", { name: "Yes, that is my terminal" }).click();
    await ssh.until(/ada@\S+:.*\$ /);
    check(/read-only/.test(ssh.text), "the ssh session opens read-only", ssh.text);
    await audit(ada, "code-confirmed");
    ssh.child.stdin.write("whoami; touch /etc/x; exit 7\r");
    check((await ssh.ended) === 7, "and ends with the shell's status", ssh.text);
    check(new RegExp(`[\r\n]${first}\r\n`).test(ssh.text) && !existsSync("/etc/x"), "as the person, without write", ssh.text);
  } finally {
    ssh.child.kill();
  }
}

async function ledger(grace) {
  await grace.goto("/ledger");
  await grace.getByRole("button", { name: "Verify the ledger" }).click();
  await grace.locator("ledger-verify .verdict").waitFor();
  const verdict = await grace.locator("ledger-verify .verdict").textContent();
  check(await grace.locator("ledger-verify .verdict.good").isVisible() && /Nothing was changed/.test(verdict) && verdict.includes("— "), "the ledger verifies, and the page shows the signed checkpoint", verdict);
  await audit(grace, "ledger-verified");
  await grace.goto("/ledger/3");
  await grace.getByRole("button", { name: "Check it in this browser" }).click();
  await grace.locator("proof-check .verdict.good").waitFor();
  await audit(grace, "entry");
}

async function rest(ada, grace) {
  await grace.goto("/me");
  await audit(grace, "me-long");
  for (const [name, place] of [
    ["hosts", "/hosts"], ["host", "/hosts/" + host], ["sessions", "/sessions"], ["approvals", "/approvals"], ["people", "/people"],
    ["policy", `/policy?person=${first}&action=sessions.open&host=${host}&level=write`], ["me", "/me"], ["home-last", "/"],
  ]) {
    await ada.goto(place);
    await audit(ada, name);
  }
}

const stages = [];
async function stage(name, run) {
  const at = Date.now();
  const got = await run();
  stages.push(`${name} ${((Date.now() - at) / 1000).toFixed(1)} s`);
  return got;
}
try {
  const ada = await visitor();
  await stage("look", () => look(ada));
  const fresh = freshFacts(ada).then(() => "", String);
  await stage("read shell", () => readShell(ada));
  const grace = await stage("second person", () => secondPerson(ada));
  await stage("jump", () => jump(ada, grace));
  await stage("write shell", () => writeShell(ada, grace));
  await stage("buddy", () => buddy(ada, grace));
  await stage("replay", () => replay(grace));
  await stage("glass", () => glass(ada, grace));
  await stage("code", () => code(ada));
  await stage("ledger", () => ledger(grace));
  check((await fresh) === "", "the facts of a host are live", await fresh);
  await stage("rest", () => rest(ada, grace));
} catch (error) {
  check(false, "the story breaks off after: " + stages.join(", "), String(error.stack ?? error));
  for (const [n, page] of people.entries()) {
    console.log(`person ${n} stands at ${page.url()}`);
    await page.screenshot({ path: `${shots}broken-${n}.png`, fullPage: true }).catch(() => {});
  }
}
for (const page of people) check(page.problems.length === 0, "the console is quiet", page.problems.join("\n      "));
console.log(`${seen.audits} views audited with axe in ${seconds()} s: ${stages.join(", ")}`);
await end();
