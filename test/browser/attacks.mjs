// Attacks on who looks: text that others choose, programs in a terminal, and
// pages of other sites. Each is tried in the browser.
import { check, fits, plan } from "./browser.mjs";

export async function attacks({ visitor, pages }) {
  await texts(visitor, pages);
  await asking(visitor);
  await frames(visitor);
}

// What is made not to be seen must be shown as a number instead.
const unseen = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\p{Cf}]/u;

async function texts(visitor, pages) {
  const page = await visitor(plan.hostile, "p-7k3f9q2m", { viewport: { width: 390, height: 800 } });
  const strangers = () => page.evaluate(() => ({
    ran: "pwned" in window,
    made: document.querySelectorAll("img, main script, [onerror], [href^='javascript:']").length,
    outside: [...document.querySelectorAll("[href], [src], [action], [hx-get]")].map((e) => e.getAttribute("href") ?? e.getAttribute("src") ?? e.getAttribute("action") ?? e.getAttribute("hx-get")).filter((at) => !/^[/#]/.test(at) || at.startsWith("//")),
    html: document.documentElement.outerHTML,
    title: document.title,
  }));
  const harmless = async (name) => {
    const found = await strangers();
    check(!found.ran && found.made === 0, `${name}: text of others stays text`, JSON.stringify({ ran: found.ran, made: found.made }));
    check(found.outside.length === 0, `${name}: no address leads outside`, found.outside.join(" "));
    check(!unseen.test(found.html) && !unseen.test(found.title), `${name}: nothing is there that cannot be seen`, JSON.stringify(unseen.exec(found.html)?.input.slice(Math.max(0, unseen.exec(found.html).index - 60), unseen.exec(found.html).index + 20)));
    return found.html;
  };
  const at = { "/hosts/db-1": "/hosts/h-4q8t2m6w", "/hosts/build-1": "/hosts/h-3c7v1b5n", "/hosts/staging-1": "/hosts/h-8r2d6f1g" };
  for (const [name, where, person, path] of pages) {
    if (where !== "busy" || person !== "ada" || /none|nobody|nowhere/.test(path)) continue;
    page.problems.length = 0;
    await page.goto(at[path] ?? path, { waitUntil: "load" });
    await harmless("hostile " + name);
    await fits(page, `hostile ${name}`);
    const bad = page.problems.filter((p) => !/status of 404/.test(p));
    check(bad.length === 0, `hostile ${name}: the console is quiet`, bad.join("\n      "));
  }
  for (const what of ["stacks", "env", "journal", "files"]) {
    await page.goto("/hosts/h-4q8t2m6w/inspect?what=" + what + "&target=api");
    await page.locator("input[name=target]").press("Enter");
    await page.locator(".look").waitFor();
    await harmless("hostile inspect " + what);
    await fits(page, `hostile inspect ${what}`);
  }
  await page.goto("/sessions/search");
  await page.getByRole("searchbox", { name: "Words" }).fill("checkout");
  await page.keyboard.press("Enter");
  await page.locator(".found-lines mark").first().waitFor();
  await harmless("hostile search");
  await fits(page, "hostile search");
  await page.goto("/approvals/a-6y1u8i4o");
  check((await page.locator("main").textContent()).includes("⟨U+202E⟩txt.exe⟨U+200B⟩"), "an approver sees what was made not to be seen");
  for (const typed of ["?q=" + encodeURIComponent('"><img src=x onerror=window.pwned=1>\u202e'), "?action=" + encodeURIComponent('"><script>window.pwned=1</script>')]) {
    await page.goto((typed.startsWith("?q") ? "/hosts" : "/ledger") + typed);
    await harmless("typed " + typed.slice(1, 7));
  }
  await page.goto("/" + encodeURIComponent('<img src=x onerror=window.pwned=1>\u202e'));
  await harmless("an address");
  await page.goto("/login?next=" + encodeURIComponent('javascript:window.pwned=1//"><img src=x>'));
  await page.waitForURL((u) => u.pathname === "/"); // who is logged in goes on, inside
  await page.goto("/sessions/s-9b3n7m1q");
  await page.getByRole("button", { name: /Play the recording/ }).click();
  await page.locator(".replay-side li").first().waitFor();
  await harmless("hostile chapters");
  await page.keyboard.press("Control+k");
  await page.locator("#palette-q").pressSequentially("e");
  await page.locator("#palette-hits a", { hasText: "onerror" }).first().waitFor();
  await harmless("hostile palette");
  await page.context().close();
}

const shown = (page, text) => page.waitForFunction((want) => {
  const buffer = document.querySelector("term-view")?.term?.buffer.active;
  return buffer && Array.from({ length: buffer.length }, (_, i) => buffer.getLine(i).translateToString(true)).join("\n").includes(want);
}, text);

// asking has a program ask the terminal of somebody who joined for answers: they
// would be keys in that person's name. It also tells it what it must not do.
async function asking(visitor) {
  const page = await visitor(plan.hostile, "p-7k3f9q2m");
  const sent = [];
  page.on("websocket", (socket) => socket.on("framesent", ({ payload }) => payload[0] === 0x0a && sent.push(payload.subarray(2).toString())));
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await page.goto("/sessions/s-7q1w5e9r");
  await page.evaluate(() => navigator.clipboard.writeText("mine"));
  await page.locator("[data-join]").click();
  await page.getByText("joined: your keys count").waitFor();
  await page.locator(".xterm").click();
  await page.keyboard.type("ask\r");
  await shown(page, "asked");
  await page.keyboard.type("tell\r");
  await shown(page, "told");
  await page.locator(".term-notice", { hasText: "⟨U+202E⟩" }).waitFor();
  await page.keyboard.type("end\r");
  await page.waitForFunction(() => document.querySelector("term-view").shown === 0);
  check(sent.join("") === "ask\rtell\rend\r", "a joined terminal sends keys and no answers", JSON.stringify(sent.join("")));
  check((await page.evaluate(() => navigator.clipboard.readText())) === "mine", "a program does not reach the clipboard");
  check(!(await page.title()).includes("a title"), "nor the title");
  check(!(await page.evaluate(() => "pwned" in window)), "a notice stays text");
  const opened = [];
  page.context().on("page", (p) => opened.push(p.url()));
  page.on("dialog", (dialog) => (opened.push(dialog.message()), dialog.dismiss()));
  const [x, y] = await page.evaluate(() => {
    const span = [...document.querySelectorAll(".xterm-rows > div")].find((row) => row.textContent.startsWith("link"));
    const box = span.getBoundingClientRect();
    return [box.left + 12, box.top + box.height / 2];
  });
  await page.mouse.move(x, y);
  await page.mouse.click(x, y);
  await page.locator("#say", { hasText: "https://evil.example/" }).waitFor();
  check(opened.length === 0, "a link that a program prints opens nothing, and says where it leads", opened.join());
  await page.context().close();
}

// frames has another site put a page into a frame, and send its forms.
async function frames(visitor) {
  const page = await visitor(plan.hostile, "p-7k3f9q2m");
  const evil = plan.hostile.replace("localhost", "127.0.0.1"); // another site to a browser
  await page.route(evil + "/evil", (route) => route.fulfill({ contentType: "text/html", body: `<iframe src="${plan.hostile}/approvals/a-6y1u8i4o"></iframe><form method=post action="${plan.hostile}/people/p-2m4x8c1d/lock"><input name=reason value=x><button>go</button></form>` }));
  await page.goto(evil + "/evil");
  const frame = page.frames().find((f) => f !== page.mainFrame());
  check(!(await frame.locator("body").textContent().catch(() => "")).includes("Approve"), "no other site frames a page", frame.url());
  await page.getByRole("button", { name: "go" }).click();
  await page.getByText("comes from another site").waitFor();
  check(true, "nor sends a form");
  await page.context().close();
}
