// Proving the ledger: <ledger-verify> follows the server's verification,
// <proof-check> checks one entry's proof in this browser.

import { visible } from "./app.js";
import { lines } from "./stream.js";

const b64 = (s) => Uint8Array.from(atob(s), (c) => c.charCodeAt(0));
const equal = (a, b) => a.length === b.length && a.every((x, i) => x === b[i]);
const make = (name, props = {}, ...children) => {
  const el = Object.assign(document.createElement(name), props);
  el.append(...children);
  return el;
};

// verdict shows a result as a word, a shape and a colour.
function verdict(ok, title, ...rest) {
  return make("div", { className: "verdict " + (ok ? "good" : "bad") },
    make("p", { className: "verdict-title" }, (ok ? "✓ " : "✗ ") + title), ...rest);
}

class LedgerVerify extends HTMLElement {
  connectedCallback() {
    this.querySelector("[data-verify]").addEventListener("click", () => this.run());
    if (new URL(location.href).searchParams.has("verify")) this.run();
  }

  async run() {
    const button = this.querySelector("[data-verify]");
    const result = this.querySelector("[data-result]");
    if (button.disabled) return;
    button.disabled = true;
    const bar = make("progress", { max: 1, value: 0 });
    bar.setAttribute("aria-label", "Verified so far");
    const word = make("p", { className: "hint num" }, "Starting…");
    result.replaceChildren(bar, word);
    const number = (n) => Number(n ?? 0).toLocaleString();
    try {
      const answer = await fetch("/ledger/verify", { method: "POST", headers: { Accept: "application/json" } });
      if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).text ?? "the server answered " + answer.status);
      let last, whole = false;
      for await (const line of lines(answer)) {
        if (line.k === "broken") throw new Error(line.x);
        if (line.k === "end") { whole = true; continue; }
        last = line;
        if (line.total) bar.max = line.total, bar.value = line.checked;
        word.textContent = `${number(line.checked)} of ${number(line.total)} entries`;
      }
      if (!whole || !last?.done) throw new Error("the verification broke off: that proves nothing");
      result.replaceChildren(this.outcome(last, number));
    } catch (error) {
      result.replaceChildren(verdict(false, "Not verified", make("p", {}, visible(error.message))));
    }
    button.disabled = false;
  }

  outcome(last, number) {
    const counted = make("p", { className: "num" },
      `${number(last.checked)} entries, ${number(last.payloads)} payloads and ${number(last.recordings)} recordings recomputed.`);
    const note = make("pre", { className: "block-code", tabIndex: 0 }, make("code", {}, last.checkpoint ?? ""));
    note.setAttribute("role", "region");
    note.setAttribute("aria-label", "Signed checkpoint");
    const head = make("p", { className: "dim" }, "Everything fits this signed checkpoint:");
    if (last.ok) return verdict(true, "Nothing was changed", counted, head, note);
    head.textContent = "Checked against this signed checkpoint:";
    return verdict(false, "Something was touched",
      make("ul", {}, ...(last.findings ?? []).map((f) => make("li", {}, visible(f)))), counted, head, note);
  }
}

const sha256 = async (...parts) => {
  const all = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const p of parts) all.set(p, at), (at += p.length);
  return new Uint8Array(await crypto.subtle.digest("SHA-256", all));
};

// rootOf folds an RFC 6962 inclusion proof: leaf, index and size give the root.
export async function rootOf(leaf, index, size, path) {
  if (index < 0 || index >= size) throw new Error("the entry lies beyond the checkpoint");
  let hash = await sha256([0], leaf);
  let i = BigInt(index), last = BigInt(size) - 1n;
  for (const sibling of path) {
    if (last === 0n) throw new Error("the proof is too long");
    if (i & 1n || i === last) {
      hash = await sha256([1], sibling, hash);
      while (!(i & 1n) && i !== 0n) i >>= 1n, (last >>= 1n);
    } else {
      hash = await sha256([1], hash, sibling);
    }
    i >>= 1n;
    last >>= 1n;
  }
  if (last !== 0n) throw new Error("the proof is too short");
  return hash;
}

class ProofCheck extends HTMLElement {
  connectedCallback() {
    this.querySelector("[data-check]").addEventListener("click", () => this.run());
  }

  async run() {
    const result = this.querySelector("[data-result]");
    try {
      if (!crypto.subtle) throw new Error("this browser hashes only over HTTPS or on localhost");
      const proof = JSON.parse(this.dataset.proof);
      const [, size, root] = proof.checkpoint.split("\n");
      const got = await rootOf(b64(proof.leaf), proof.index, Number(size), proof.inclusion.map(b64));
      if (!equal(got, b64(root))) throw new Error("the leaf and its neighbours give another root than the checkpoint's");
      const hex = Array.from(got, (b) => b.toString(16).padStart(2, "0")).join("");
      result.replaceChildren(verdict(true, "The leaf is in the tree", make("p", { className: "wrap" }, "Root ", make("code", {}, hex))));
    } catch (error) {
      result.replaceChildren(verdict(false, "The proof does not hold", make("p", {}, visible(error.message))));
    }
  }
}

customElements.define("ledger-verify", LedgerVerify);
customElements.define("proof-check", ProofCheck);
