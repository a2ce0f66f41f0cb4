// The main flows, walked as a person would: by link, by key, by passkey.
import { decode, encode } from "../../internal/surface/web/static/frame.js";
import { audit, check, fits, plan } from "./browser.mjs";

export async function flows({ visitor, look }) {
  frames();
  const page = await visitor(plan.flows, "", look);
  const quiet = (what) => {
    const bad = page.problems.filter((p) => !/status of (4\d\d)/.test(p));
    check(bad.length === 0, what + ": the console is quiet", bad.join("\n      "));
    page.problems.length = 0;
  };
  const authenticator = await passkeys(page);
  await login(page);
  quiet("login");
  await keys(page);
  await overtaken(page);
  quiet("keys");
  await shell(page);
  quiet("shell");
  await watch(page);
  quiet("watch");
  await replay(page);
  quiet("replay");
  await search(page);
  quiet("search");
  await webhook(page);
  quiet("webhook");
  await approve(page, authenticator);
  quiet("approve");
  await follow(page);
  quiet("follow");
  await ledger(page);
  quiet("ledger");
  await inspect(page);
  quiet("inspect");
  await secrets(page);
  quiet("secrets");
  await errors(page);
  await weight(visitor, look);
  await page.context().close();
}

const shot = (page, name) => process.env.SHOTS && page.screenshot({ path: `shots/${name}.png`, fullPage: true });

// frames proves the hand-written codec against bytes made by protobuf.
function frames() {
  const hex = (b) => Buffer.from(b).toString("hex");
  const bytes = (s) => new Uint8Array(Buffer.from(s, "hex"));
  check(hex(encode.input("ls\r")) === "0a036c730d", "frame: input", hex(encode.input("ls\r")));
  check(hex(encode.resize(200, 50)) === "220508c8011032", "frame: resize", hex(encode.resize(200, 50)));
  check(hex(encode.eof()) === "2801", "frame: eof");
  check(hex(encode.signal("INT")) === "3203494e54", "frame: signal");
  check(hex(encode.acknowledged(65536)) === "48808004", "frame: acknowledged", hex(encode.acknowledged(65536)));
  check(decode(bytes("12026869")).kind === "output" && Buffer.from(decode(bytes("12026869")).data).toString() === "hi", "frame: output");
  check(decode(bytes("3803")).status === 3, "frame: exit 3");
  check(decode(bytes("38ffffffffffffffffff01")).status === -1, "frame: exit -1, ten bytes long", String(decode(bytes("38ffffffffffffffffff01")).status));
  const notice = decode(bytes("420c0a06706175736564" + "12026f6b"));
  check(notice.what === "paused" && notice.text === "ok", "frame: notice", JSON.stringify(notice));
  const session = decode(bytes("520b5206706175736564" + "5a0178"));
  check(session.kind === "session" && session.state === "paused" && session.pausedWhy === "x", "frame: session", JSON.stringify(session));
  check(decode(bytes("9a0603616263")).kind === "unknown", "frame: an unknown field is skipped");
  for (const cut of ["1205", "12", "42ff"]) {
    let threw = false;
    try { decode(bytes(cut)); } catch { threw = true; }
    check(threw, "frame: cut short is an error: " + cut);
  }
}

// passkeys gives the browser an authenticator that needs no finger.
async function passkeys(page) {
  const cdp = await page.context().newCDPSession(page);
  await cdp.send("WebAuthn.enable");
  const { authenticatorId } = await cdp.send("WebAuthn.addVirtualAuthenticator", {
    options: { protocol: "ctap2", transport: "internal", hasResidentKey: true, hasUserVerification: true, isUserVerified: true, automaticPresenceSimulation: true },
  });
  return { cdp, authenticatorId };
}

async function login(page) {
  await page.goto("/hosts/web-1");
  check(page.url().includes("/login?next=%2Fhosts%2Fweb-1"), "who is not logged in is sent to log in", page.url());
  await page.goto("/login?t=" + plan.linkPrefix + "linus");
  await page.goto("/login?t=" + plan.linkPrefix + "linus");
  check(await page.evaluate(() => document.activeElement.textContent === "Open handrail"), "the button of a login link has the focus");
  await page.keyboard.press("Enter");
  await page.waitForURL("**/welcome");
  check(true, "looking at a login link does not use it up");
  await page.getByRole("button", { name: "Make a passkey" }).click();
  await page.waitForURL((u) => u.pathname === "/");
  check(await page.getByText("Passkey saved.").isVisible(), "a passkey is made in the browser");
  check(!page.url().includes("ok="), "what was done is said once", page.url());
  const [cookie] = await page.context().cookies();
  check(cookie.httpOnly && cookie.sameSite === "Strict", "the login cookie is out of reach of scripts and of other sites");
  await page.locator(".you summary").click();
  await page.getByRole("button", { name: "Log out" }).click();
  await page.waitForURL("**/login**");
  check(await page.getByText("Logged out.").isVisible(), "log out says so");
  await page.getByRole("button", { name: "Use your passkey" }).click();
  await page.waitForURL((u) => u.pathname === "/");
  check(await page.locator(".you-name").textContent() === "ada", "a passkey logs in");
  const response = await page.goto("/login?t=" + plan.linkPrefix + "linus");
  check(response.status() === 200, "a used link still shows its page");
  await page.getByRole("button", { name: "Open handrail" }).click();
  check(await page.getByText("this link was used already").isVisible(), "a used link says so, and what to do");
  check(await page.getByText("handrail login-link").isVisible(), "with the next command");
}

async function keys(page) {
  await page.goto("/");
  await page.keyboard.press("g");
  await page.keyboard.press("o");
  await page.waitForURL("**/hosts");
  check(true, "g o goes to the hosts");
  await page.keyboard.press("/");
  await page.keyboard.type("web");
  await page.waitForFunction(() => document.querySelectorAll("#hosts-live tbody tr").length === 2);
  check(page.url().endsWith("/hosts?q=web"), "/ filters, and the URL is the state", page.url());
  await page.keyboard.press("Escape");
  await page.keyboard.press("j");
  await page.keyboard.press("j");
  await page.keyboard.press("Enter");
  await page.waitForURL("**/hosts/web-2");
  check(true, "j j Enter opens the second row");
  await page.keyboard.press("?");
  check(await page.locator("#keys").isVisible(), "? shows the keys");
  await audit(page, "the keys");
  await page.keyboard.press("Escape");
  await page.keyboard.press("Control+k");
  await page.locator("#palette-hits a").first().waitFor();
  await audit(page, "the palette");
  await page.keyboard.type("build");
  await page.waitForFunction(() => document.querySelector("#palette-hits a span")?.textContent === "build-1");
  await page.keyboard.press("Enter");
  await page.waitForURL("**/hosts/build-1");
  check(true, "Ctrl K goes to a host by name");
  await page.keyboard.press("Tab");
  check(await page.evaluate(() => document.activeElement.className === "skip"), "the first Tab is the skip link");
}

// overtaken holds answers back on their way: none may show what is not asked
// for any more, whoever asked for it.
async function overtaken(page) {
  await page.goto("/hosts");
  const held = [];
  let hold = (url) => !url.searchParams.get("q");
  await page.route((url) => url.pathname === "/hosts", async (route) => {
    const request = route.request();
    if (!request.headers()["hx-request"] || !hold(new URL(request.url()))) return route.fallback();
    const answer = await route.fetch();
    await new Promise((go) => held.push(go));
    await route.fulfill({ response: answer }).catch(() => {}); // the page may have given it up
  });
  const rows = (n) => page.waitForFunction((n) => document.querySelectorAll("#hosts-live tbody tr").length === n, n);
  const until = async (n) => { while (held.length < n) await page.evaluate(() => new Promise(requestAnimationFrame)); };
  const settled = () => page.waitForFunction(() => !document.querySelector(".htmx-request"));

  // A refresh is on its way when somebody filters.
  await page.evaluate(() => document.querySelector("#hosts-live").dispatchEvent(new CustomEvent("handrail:changed")));
  await until(1);
  await page.locator("[data-filter]").pressSequentially("web-2");
  await rows(1);
  held.splice(0).forEach((go) => go());
  await settled();
  check((await page.locator("#hosts-live .row-link").allTextContents()).join() === "web-2", "a refresh does not overtake a filter");
  check((await page.locator("[data-filter]").inputValue()) === "web-2", "and what was typed stays");

  // A refresh after filtering keeps the filter.
  await page.evaluate(() => document.querySelector("#hosts-live").dispatchEvent(new CustomEvent("handrail:changed")));
  await settled();
  check((await page.locator("#hosts-live .row-link").allTextContents()).join() === "web-2", "a refresh keeps the filter");

  // Each letter asks, and the first answers are slow.
  hold = (url) => url.searchParams.get("q") !== "web-1";
  await page.locator("[data-filter]").fill("");
  for (const part of ["w", "we", "web", "web-1"]) {
    await page.locator("[data-filter]").fill(part);
    if (part === "w") await until(1);
  }
  await page.waitForFunction(() => document.querySelector("#hosts-live .row-link")?.textContent === "web-1");
  held.splice(0).forEach((go) => go());
  await settled();
  check((await page.locator("#hosts-live .row-link").allTextContents()).join() === "web-1", "a slow answer to half a word does not stay");
  await page.unrouteAll({ behavior: "ignoreErrors" });

  // The palette goes to what was typed, also when the answer is still to come.
  let answer;
  const slow = new Promise((go) => (answer = go));
  await page.route((url) => url.pathname === "/palette" && url.searchParams.get("q") === "build", async (route) => {
    await slow;
    await route.continue().catch(() => {});
  });
  await page.keyboard.press("Control+k");
  await page.locator("#palette-hits a").first().waitFor();
  await page.keyboard.type("build");
  await page.keyboard.press("Enter");
  answer();
  await page.waitForURL("**/hosts/build-1");
  check(true, "Enter waits for the answer to what was typed");
  await page.unrouteAll({ behavior: "ignoreErrors" });
}

const shows = (page, text) => page.waitForFunction((want) => {
  const buffer = document.querySelector("term-view, replay-view")?.term?.buffer.active;
  return buffer && Array.from({ length: buffer.length }, (_, i) => buffer.getLine(i).translateToString(true)).join("\n").includes(want);
}, text, { timeout: 30_000 });

async function shell(page) {
  await page.goto("/hosts/thinkpad");
  await page.getByRole("button", { name: "Read-only shell" }).click();
  await page.waitForURL("**/sessions/s-new*");
  await shows(page, "ada@thinkpad");
  check(!page.url().includes("ticket"), "the ticket is not in the address", page.url());
  await page.keyboard.type("whoami\r");
  await shows(page, "\nada");
  check(true, "whoami in the browser's shell");
  await page.keyboard.type("tag\r");
  await page.waitForFunction(() => [...document.querySelectorAll(".xterm-rows span")].some((s) => s.textContent.trim() === "true")); // drawn, not only received
  const colours = await page.evaluate(() => {
    const spans = [...document.querySelectorAll(".xterm-rows span")];
    const red = spans.find((s) => s.textContent.trim() === "red");
    const tag = spans.find((s) => s.textContent.includes("PRODUCTION"));
    const any = spans.find((s) => s.textContent.trim() === "true");
    return [getComputedStyle(red).color, getComputedStyle(tag).backgroundColor, getComputedStyle(any).color];
  });
  check(colours[2] === "rgb(90, 200, 250)", "and 24-bit colours", colours[2]);
  check(!colours.some((c) => c === "rgba(0, 0, 0, 0)" || c === "rgb(223, 228, 231)"), "the terminal has its colours under the strict policy", colours.join(" "));
  await page.keyboard.type("touch x\r");
  await page.getByText("This session is read-only. To write").waitFor();
  check(true, "a refused write says why and what to do");
  await audit(page, "own shell");
  await shot(page, "flow-shell");
  await page.keyboard.press("Control+Shift+.");
  check(await page.evaluate(() => document.activeElement.type === "search"), "Ctrl Shift . leaves the terminal");
  await page.locator(".xterm").click();
  await page.keyboard.type("exit\r");
  await page.getByRole("button", { name: "See the recording" }).waitFor();
  check(true, "when the shell ends, the page says so");
  await page.goto("/hosts/web-1");
  const answer = await page.request.post(page.url() + "/open", { form: { level: "write" }, headers: { Origin: "http://evil.example" } });
  check(answer.status() === 403, "a form from another site is refused", String(answer.status()));
}

async function watch(page) {
  await page.goto("/sessions/s-4f9k2m7x");
  await shows(page, "pg_stat_activity");
  check((await page.locator(".term-bar strong").textContent()) === "watching", "a buddy watches");
  await page.getByRole("button", { name: "Pause" }).click();
  await page.getByText("Paused. Nothing in the session runs").waitFor();
  await page.getByRole("button", { name: "Resume" }).click();
  await page.getByText("Resumed.").waitFor();
  await page.getByRole("button", { name: "Join" }).click();
  await page.getByText("joined: your keys count").waitFor();
  check(true, "pause, resume, join");
}

async function replay(page) {
  await page.goto("/sessions/s-9b3n7m1q");
  await page.getByRole("button", { name: /Play the recording/ }).click();
  await page.locator(".replay-side li").first().waitFor();
  check((await page.locator(".replay-side li").count()) === 5, "the commands are chapters");
  await shows(page, "OPS-5");
  await page.getByRole("button", { name: /curl -s localhost/ }).click();
  await shows(page, '"status":"ok"');
  check(true, "a chapter seeks forward");
  await page.getByRole("button", { name: /systemctl status checkout/ }).click();
  await page.waitForFunction(() => {
    const buffer = document.querySelector("replay-view").term.buffer.active;
    const text = Array.from({ length: buffer.length }, (_, i) => buffer.getLine(i).translateToString(true)).join("\n");
    return text.includes("systemctl status checkout") && !text.includes('"status":"ok"');
  });
  check(true, "and back");
  await page.locator(".replay-body select").selectOption("16");
  await page.getByLabel("Find in the recording").fill("permission denied");
  await page.keyboard.press("Enter");
  await shows(page, "permission denied");
  check(true, "search goes to when it was shown");
  await audit(page, "replay");
  await shot(page, "flow-replay");
  await page.locator(".replay-body .term-bar button").first().focus();
  const word = () => page.locator(".replay-body .term-bar button").first().textContent();
  const before = await word();
  await page.keyboard.press("Space");
  check(before !== (await word()), "Space plays and pauses", before);
}

// search looks for words in recordings with keys alone, and goes on into a replay.
async function search(page) {
  const overall = async (name) => {
    for (const [look, colorScheme, width] of [["wide-light", "light", 1400], ["wide-dark", "dark", 1400], ["narrow-dark", "dark", 400], ["narrow-light", "light", 400]]) {
      await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
      await page.setViewportSize({ width, height: 860 });
      await audit(page, `${name} ${look}`);
      await fits(page, `${name} ${look}`);
      await shot(page, `flow-${name}-${look}`);
    }
    await page.setViewportSize({ width: 1280, height: 860 });
  };
  await page.goto("/sessions");
  await page.locator("h1").click();
  await page.keyboard.press("/");
  await page.keyboard.type("CHECKOUT");
  check(new URL(page.url()).pathname === "/sessions" && !(await page.locator("main form[role=search] [hx-get], main form[role=search][data-filters]").count()), "nothing is searched while somebody types");
  await page.keyboard.press("Enter");
  await page.locator(".found-lines mark").first().waitFor();
  check(!page.url().includes("CHECKOUT"), "what was looked for is in no address", page.url());
  await overall("search-found");
  const line = page.locator(".found-lines a", { hasText: "permission denied" });
  check((await line.locator("mark").allTextContents()).every((text) => text.toLowerCase() === "checkout"), "the words are marked");
  await line.focus();
  const [moment] = await Promise.all([page.context().waitForEvent("page"), page.keyboard.press("Enter")]);
  await moment.getByRole("button", { name: /Show the recording at 0:0/ }).click();
  await shows(moment, "permission denied");
  check((await moment.locator(".term-bar button").first().textContent()) === "Play", "a line leads to its moment, which stands still");
  const later = await moment.evaluate(() => document.querySelector("replay-view").at < document.querySelector("replay-view").length);
  check(later, "and not to the end");
  await moment.close();
  check(await page.locator(".found-lines").isVisible(), "and what was found stays");
  for (const [name, words, fields, seen] of [
    ["search-nothing", "zebra", {}, "Nothing found"], ["search-refused", "checkout", { person: "mallory" }, "No recording was searched"],
    ["search-broken", "checkout", { host: "build-1" }, "were not searched"],
  ]) {
    await page.goto("/sessions/search");
    for (const [field, value] of Object.entries({ words, ...fields })) await page.locator(`main input[name=${field}]`).fill(value);
    await page.keyboard.press("Enter");
    await page.getByText(seen).first().waitFor();
    await audit(page, name);
    await shot(page, "flow-" + name);
  }
}

// webhook sends a test, and says so.
async function webhook(page) {
  await page.goto("/webhooks");
  await page.getByRole("link", { name: "siem" }).click();
  await page.getByRole("button", { name: "Send a test" }).click();
  await page.getByText("after whatever waits before it").waitFor();
  check(true, "a webhook is sent a test");
  await audit(page, "webhook tested");
}

async function approve(page, { cdp, authenticatorId }) {
  await page.goto("/approvals");
  await page.getByRole("link", { name: "write on web-1, web-2 for 30 min" }).click();
  await page.waitForURL("**/approvals/a-6y1u8i4o");
  check(await page.getByText("What handrail cannot contain").isVisible(), "the approver sees what cannot be contained");
  const { credentials } = await cdp.send("WebAuthn.getCredentials", { authenticatorId });
  check(credentials.length === 1, "the passkey is on the authenticator");
  await page.getByRole("button", { name: "Approve with your passkey" }).click();
  await page.waitForURL((u) => !u.search || u.search.includes("ok=approved"));
  await page.getByText("Approved, and signed with your passkey.").waitFor();
  check(await page.getByText("signed by passkey").isVisible(), "approved in the browser, by passkey");
  await audit(page, "approved");
}

async function follow(page) {
  await page.goto("/sessions");
  await page.waitForFunction(() => document.querySelector("#live").dataset.state === "live");
  const other = await page.context().newPage();
  await other.goto("/sessions/s-7q1w5e9r");
  await other.getByRole("button", { name: "Stop" }).click();
  await other.getByText("Stopped. Every process").waitFor();
  await page.locator("#s-live + *, #sessions-live").first().waitFor();
  await page.waitForFunction(() => [...document.querySelectorAll("#sessions-live tr")].some((r) => r.textContent.includes("linus on web-1") && r.textContent.includes("stopped")), null, { timeout: 30_000 });
  check(true, "what happens elsewhere appears without a reload");
  await other.close();
  await page.goto("/hosts/staging-1");
  await page.locator("#elevate textarea").fill("half a sentence");
  await page.waitForFunction(() => document.querySelector("#live").dataset.state === "live");
  const quietly = await page.context().newPage();
  await quietly.goto("/sessions/s-4f9k2m7x");
  await quietly.getByRole("button", { name: "Pause" }).click();
  await quietly.getByText("Paused.").waitFor();
  await quietly.close();
  await page.waitForFunction(() => document.querySelector("#side .badge") !== null);
  check((await page.locator("#elevate textarea").inputValue()) === "half a sentence", "what is being typed stays");
}

async function ledger(page) {
  await page.goto("/ledger");
  await page.getByRole("button", { name: "Verify the ledger" }).click();
  await page.getByText("Nothing was changed").waitFor();
  check(await page.getByText("acme.handrail.internal").first().isVisible(), "verify shows the signed checkpoint");
  await audit(page, "verified");
  await shot(page, "flow-verified");
  const download = page.waitForEvent("download");
  await page.getByRole("button", { name: "Export" }).click();
  check((await download).suggestedFilename().endsWith(".zip"), "export downloads a zip");
  for (const n of [0, 1, 20, 77, 128, 134]) {
    await page.goto("/ledger/" + n);
    await page.getByRole("button", { name: "Check it in this browser" }).click();
    await page.locator("proof-check .verdict").waitFor();
    check(await page.locator("proof-check .verdict.good").isVisible(), `the proof of entry ${n} holds in the browser`);
  }
  await page.evaluate(() => {
    const el = document.querySelector("proof-check");
    const p = JSON.parse(el.dataset.proof);
    p.leaf = btoa(atob(p.leaf).replace("ok", "no"));
    el.dataset.proof = JSON.stringify(p);
  });
  await page.getByRole("button", { name: "Check it in this browser" }).click();
  await page.locator("proof-check .verdict.bad").waitFor();
  check(true, "a changed leaf does not prove");
}

// inspect asks for brokered reads with keys alone, and opens a fold.
async function inspect(page) {
  await page.goto("/hosts/db-1/inspect");
  await page.keyboard.type("api");
  await page.keyboard.press("Enter"); // the target has the focus, stacks are chosen
  await page.locator(".look-stack").first().waitFor();
  const answer = (await page.locator(".look").textContent()).replace(/\s+/g, " ");
  check(/held for 1\.80 ms/.test(answer) && answer.includes("37") && answer.includes("main.(*Pool).take"), "a stack dump says whom it held for how long", answer.slice(0, 300));
  check((await page.locator(".look-command .mask").textContent()).includes("password"), "what is masked is seen to be");
  await audit(page, "inspected");
  await shot(page, "flow-inspect");
  const second = page.locator(".look-stack").nth(1);
  const open = await second.getAttribute("open");
  await second.locator("summary").focus();
  await page.keyboard.press("Enter");
  check((await second.getAttribute("open")) !== open, "a stack folds and unfolds by key");
  for (const [what, seen] of [["env", "DB_PASSWORD"], ["journal", "cannot reach"], ["files", "there was nothing"]]) {
    await page.locator(`input[name=what][value=${what}]`).focus();
    await page.keyboard.press("Space");
    await page.keyboard.press("Enter");
    await page.locator(".look", { hasText: seen }).waitFor();
    await audit(page, "inspected " + what);
  }
  await page.goto("/hosts/db-1/inspect?what=stacks&target=two");
  await page.locator("input[name=target]").press("Enter");
  await page.getByText("Which one?").waitFor();
  await audit(page, "inspected two");
}

async function secrets(page) {
  await page.goto("/people");
  await page.getByRole("button", { name: "Add a person" }).click();
  await audit(page, "add a person");
  await page.getByLabel("Login name").fill("barbara");
  await page.getByLabel("Groups").fill("developer");
  await page.getByRole("button", { name: "Make the link" }).click();
  await page.getByText("It logs barbara in once.").waitFor();
  await audit(page, "a link");
  await shot(page, "flow-link");
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await page.getByRole("button", { name: /^Copy: http/ }).click();
  check((await page.evaluate(() => navigator.clipboard.readText())).includes("/login?t="), "copy copies the link");
  await page.goto("/code");
  await page.getByLabel("Code").fill("7k3f-9q2m");
  await page.keyboard.press("Enter");
  await page.getByText("10.9.0.31").waitFor();
  await audit(page, "confirm a code");
  await shot(page, "flow-code");
  await page.getByRole("button", { name: "Yes, that is my terminal" }).click();
  await page.getByText("Confirmed.").waitFor();
  check(true, "a code is confirmed after its source is shown");
  await page.goto("/hosts");
  await page.getByRole("button", { name: "Invite a host" }).click();
  await audit(page, "invite a host");
  await page.getByRole("button", { name: "Make the line" }).click();
  await page.getByText("hr1.bG9jYWxob3N0").first().waitFor();
  check(true, "inviting a host shows the line once");
}

async function errors(page) {
  await page.goto("/hosts/web-1");
  await page.evaluate(() => {
    const form = Object.assign(document.createElement("form"), { method: "post", action: "/hosts/web-1/open" });
    form.append(Object.assign(document.createElement("input"), { name: "level", value: "write" }));
    document.body.append(form);
    form.submit();
  });
  await page.getByText("Refused").first().waitFor();
  check(await page.getByText("write-with-a-grant").isVisible(), "a refusal names the rule");
  check(await page.getByText("handrail elevate web-1").isVisible(), "and the next command");
  await shot(page, "flow-refused");
}

// weight counts what the first page costs over the wire.
async function weight(visitor, look) {
  const page = await visitor(plan.fresh, "admin", look);
  const cdp = await page.context().newCDPSession(page);
  await cdp.send("Network.enable");
  let bytes = 0, requests = 0;
  cdp.on("Network.loadingFinished", (e) => ((bytes += e.encodedDataLength), requests++));
  await page.goto("/", { waitUntil: "load" });
  await page.waitForFunction(() => document.querySelector("#live").dataset.state === "live"); // the last that it loads
  check(bytes < 100_000, `the first page is ${bytes} bytes`);
  console.log(`first page: ${(bytes / 1000).toFixed(1)} kB in ${requests} requests`);
  await page.context().close();
}
