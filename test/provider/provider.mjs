// A real provider (npm oidc-provider, certified) for tests: one client, people
// whose claims a test can change while it runs, and a login page that asks for
// a name and nothing else. Prints its issuer; ends with its standard input.
import { createServer } from "node:http";
import { Provider } from "oidc-provider";

const plan = JSON.parse(process.argv[2]);
const people = new Map(Object.entries(plan.people));
console.warn = console.info = console.error = () => {};

const server = createServer();
await new Promise((up) => server.listen(0, "127.0.0.1", up));
const issuer = `http://127.0.0.1:${server.address().port}`;

const provider = new Provider(issuer, {
  clients: [{
    client_id: plan.client, client_secret: plan.secret, application_type: "native",
    token_endpoint_auth_method: plan.secret ? "client_secret_basic" : "none",
    redirect_uris: plan.redirects, response_types: ["code"],
    grant_types: ["authorization_code", "urn:ietf:params:oauth:grant-type:device_code"],
  }],
  findAccount: (ctx, id) => people.has(id) && { accountId: id, claims: () => ({ sub: id, ...people.get(id) }) },
  claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["preferred_username", "groups", "entryuuid"] },
  conformIdTokenClaims: false, // what is asked for is in the ID token
  pkce: { required: () => true },
  features: { devInteractions: { enabled: false }, deviceFlow: { enabled: true } },
  interactions: { url: (ctx, interaction) => `/enter/${interaction.uid}` },
  cookies: { keys: ["a key of a test"] },
  ttl: { Interaction: 600, Session: 600, Grant: 600, DeviceCode: 600 },
});

// Whoever logs in agrees: consent is another test than ours.
async function agreed(accountId) {
  const grant = new provider.Grant({ clientId: plan.client, accountId });
  grant.addOIDCScope("openid email profile");
  return grant.save();
}

const body = async (r) => {
  let text = "";
  for await (const piece of r) text += piece;
  return text;
};
const routes = {
  // the login page
  async enter(r, w) {
    if (r.method === "GET") {
      const { params, prompt, session } = await provider.interactionDetails(r, w);
      if (prompt.name === "consent") return provider.interactionFinished(r, w, { consent: { grantId: await agreed(session.accountId) } }, { mergeWithLastSubmission: true });
      w.setHeader("Content-Type", "text/html; charset=utf-8");
      return w.end(`<!DOCTYPE html><html lang="en"><title>Example ID</title><h1>Example ID</h1><form method="post"><label>Who are you? <input name="login" value="${params.login_hint ?? ""}" autofocus></label><button name="do" value="enter">Log in</button><button name="do" value="leave">Cancel</button></form>`);
    }
    const form = new URLSearchParams(await body(r));
    const result = form.get("do") === "leave" ? { error: "access_denied", error_description: "<b>said the person</b>" } : { login: { accountId: form.get("login") } };
    return provider.interactionFinished(r, w, result);
  },
  // what a test changes
  async people(r, w) {
    people.clear();
    for (const [id, claims] of Object.entries(JSON.parse(await body(r)))) people.set(id, claims);
    w.end("ok");
  },
};
const answer = provider.callback();
server.on("request", (r, w) => {
  const route = routes[r.url.split("/")[1]];
  if (!route) return answer(r, w);
  route(r, w).catch((error) => { w.statusCode = 500; w.end(String(error)); });
});
process.stdin.on("end", () => process.exit(0)).resume();
console.log(issuer);
