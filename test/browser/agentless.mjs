// Opens shells on, and looks at, hosts without a node by the page of the real
// program: one that is reached through its own sshd alone, one that a node comes
// to. Prints each check that fails and exits with 1.
import { mkdirSync } from "node:fs";
import { auditLooks, check, end, plan, screenOf, seconds, seen, shows, withPasskey } from "./browser.mjs";

const shots = "shots/agentless/";
mkdirSync(shots, { recursive: true });
const page = await withPasskey(new URL(plan.link).origin);
page.setDefaultTimeout(60_000); // a node is carried there meanwhile
const audit = (name) => auditLooks(page, name, shots);
const main = () => page.locator("main").textContent();

async function enter() {
  await page.goto(plan.link);
  await page.getByRole("button", { name: "Open handrail" }).click();
  await page.getByLabel("Your login name").fill("ada");
  await page.keyboard.press("Enter");
  await page.getByRole("button", { name: "Make a passkey" }).click();
  await page.waitForURL((u) => u.pathname === "/");
}

// shell opens a read-only one by the page of the host, and leaves it.
async function shell(host, run, wants) {
  await page.goto("/hosts/" + host);
  await page.getByRole("button", { name: "Read-only shell" }).click();
  await page.waitForURL("**/sessions/s-*");
  await shows(page, "$");
  await page.keyboard.type(run + "\r");
  await shows(page, wants);
  const said = await main();
  await page.keyboard.type("exit\r");
  await page.getByRole("button", { name: "See the recording" }).waitFor();
  return said;
}

try {
  await enter();
  const said = await shell(plan.bare, "id -un", "\n" + plan.account + "\n");
  check(said.includes("NOT KERNEL-ENFORCED") && said.includes("Only the rights of the account " + plan.account), "a shell without a node says what limits it", said);
  await page.goto(`/hosts/${plan.bare}/inspect`);
  check(/Nobody can look here/.test(await main()) && /host set \S+ --ssh-node/.test(await main()), "where nobody can look the page says so", await main());
  await audit("nobody-looks");

  await page.goto(`/hosts/${plan.visited}/inspect?what=env&target=${plan.pid}`);
  await page.getByRole("button", { name: "Look", exact: true }).click();
  await page.locator(".look-how").waitFor();
  const looked = await main();
  check(/DB_PASSWORD/.test(looked) && !/hunter2/.test(looked) && /1 masked/.test(looked), "a look masks there", looked);
  check(/one came for this look \(floor: brokered\)/.test(looked), "and says that a node came for it", looked);
  await audit("looked");
  const confined = await shell(plan.visited, `touch ${plan.folder}/x`, "touch: ");
  check(!/NOT KERNEL-ENFORCED/.test(confined) && /full/.test(confined), "a shell with a node that comes is confined", confined);
} catch (error) {
  check(false, `the page breaks off at ${page.url()}`, String(error.stack ?? error) + "\n" + (await screenOf(page).catch(() => "")));
  await page.screenshot({ path: `${shots}broken.png`, fullPage: true }).catch(() => {});
}
check(page.problems.length === 0, "the console is quiet", page.problems.join("\n      "));
console.log(`${seen.audits} views audited with axe in ${seconds()} s`);
await end();
