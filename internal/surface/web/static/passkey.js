// Passkeys: log in, make one, sign an approval. The server sends WebAuthn's
// JSON forms, and gets them back.
import { say, visible } from "./app.js";

async function post(url, body) {
  const answer = await fetch(url, {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "application/json" },
    body: JSON.stringify(body ?? {}),
  });
  const value = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error([value.text, value.hint && "Next: " + value.hint].filter(Boolean).join(". ") || "the server answered " + answer.status);
  return value;
}

// unwrap takes WebAuthn options with or without the outer publicKey.
const unwrap = (text) => {
  const options = JSON.parse(text);
  return options.publicKey ?? options;
};

async function sign(begin, finish, extra) {
  const { options, ceremony } = await post(begin);
  const credential = await navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(unwrap(options)) });
  return post(finish, { ceremony, response: JSON.stringify(credential), ...extra });
}

const ceremonies = {
  async login(button) {
    const next = button.closest("[data-next]")?.dataset.next ?? "/";
    return sign("/login/passkey/begin", "/login/passkey/finish", { next });
  },
  async enrol() {
    const { options, ceremony } = await post("/me/passkey/begin");
    const credential = await navigator.credentials.create({ publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(unwrap(options)) });
    return post("/me/passkey/finish", { ceremony, response: JSON.stringify(credential) });
  },
  async key(button) {
    const { key } = button.closest("[data-key]").dataset;
    const { options, ceremony } = await post("/vouchers/key/begin", { key });
    const credential = await navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(unwrap(options)) });
    return post("/vouchers/key/finish", { ceremony, response: JSON.stringify(credential), key });
  },
  async approve(button) {
    const { approval, hash } = button.closest("[data-approval]").dataset;
    return sign(`/approvals/${approval}/sign`, `/approvals/${approval}/approve`, { hash });
  },
};

// why says a refusal of the browser as a person would.
function why(error) {
  switch (error.name) {
    case "NotAllowedError": return "No passkey was used. Try again, or go on without.";
    case "InvalidStateError": return "This device already has a passkey here.";
    case "SecurityError": return "Passkeys work only over HTTPS or on localhost. Open the page by its proper name.";
  }
  return error.message;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-passkey]");
  if (!button || button.disabled) return;
  const said = document.querySelector(".passkey-said");
  const tell = (text) => {
    if (!said) return say(text);
    said.hidden = !text;
    said.textContent = visible(text);
  };
  tell("");
  if (!window.PublicKeyCredential?.parseRequestOptionsFromJSON) {
    return tell(window.isSecureContext ? "This browser is too old for passkeys." : "Passkeys work only over HTTPS or on localhost.");
  }
  button.disabled = true;
  try {
    const { next } = await ceremonies[button.dataset.passkey](button);
    location.assign(next || "/");
  } catch (error) {
    tell(why(error));
    button.disabled = false;
  }
});

// Who followed a link from another site arrives without the cookie although
// they are logged in: ask once, and go on.
const door = document.querySelector("[data-login]");
if (door) {
  const state = await fetch("/login/state", { headers: { Accept: "application/json" } }).then((answer) => answer.json(), () => null);
  if (state?.in) location.replace(door.dataset.next || "/");
}
