// The terminal that both islands use: xterm with our colours, inside a strict
// content security policy.

import { Terminal } from "./vendor/xterm.mjs";
import { say, visible } from "./app.js";
import { FitAddon } from "./vendor/addon-fit.mjs";

// xterm writes colours and sizes into style elements that it makes, and single
// colours into style attributes of spans. The policy refuses both. So its style
// elements get the nonce of this one answer, and its style attributes are set
// as properties, which the policy leaves alone. 'unsafe-inline' is not needed.
let allowed = false;
function allowStyles(nonce) {
  if (allowed || !nonce) return;
  allowed = true;
  const create = document.createElement.bind(document);
  document.createElement = (name, options) => {
    const el = create(name, options);
    if (String(name).toLowerCase() === "style") el.nonce = nonce;
    return el;
  };
  const set = HTMLSpanElement.prototype.setAttribute;
  HTMLSpanElement.prototype.setAttribute = function (name, value) {
    if (name === "style") this.style.cssText = value;
    else set.call(this, name, value);
  };
}

const theme = {
  background: "#15181b", foreground: "#dfe4e7", cursor: "#5ecfc4", cursorAccent: "#15181b", selectionBackground: "#3b5a66",
  black: "#23282c", red: "#cb3a32", green: "#3fae6b", yellow: "#dda63a", blue: "#8ab8f0", magenta: "#d7a3ec", cyan: "#5ecfc4", white: "#dfe4e7",
  brightBlack: "#8b959c", brightRed: "#ffb0a9", brightGreen: "#a2e6bb", brightYellow: "#ffd68c", brightBlue: "#b0d0f7", brightMagenta: "#e6c3f5", brightCyan: "#8fe4db", brightWhite: "#ffffff",
};

export const make = (name, props = {}, ...children) => {
  const el = Object.assign(document.createElement(name), props);
  el.append(...children);
  return el;
};

// silence keeps a terminal from answering programs while still() holds. What a
// program asks (where the cursor is, which colours, what terminal this is), the
// terminal of the session's own person answers. The answer of a second one would
// be keys that nobody pressed, in the name of who joined.
export function silence(term, still) {
  const ask = (id) => term.parser.registerCsiHandler(id, still);
  for (const final of ["c", "n", "t", "x"]) ask({ final });
  for (const prefix of [">", "=", "?"]) for (const final of ["c", "n", "q", "u"]) ask({ prefix, final });
  ask({ intermediates: "$", final: "p" });
  ask({ prefix: "?", intermediates: "$", final: "p" });
  for (const intermediates of ["$", "+"]) term.parser.registerDcsHandler({ intermediates, final: "q" }, still);
  for (const colour of [4, 5, 10, 11, 12, 13, 14, 17, 19]) term.parser.registerOscHandler(colour, (data) => data.includes("?") && still());
}

// open makes a terminal inside box. keys: false for one that only shows.
export function open(box, { nonce, label, keys }) {
  allowStyles(nonce);
  const term = new Terminal({
    theme, fontSize: 13, lineHeight: 1.2, scrollback: 5000, linkHandler: { activate: (_, uri) => say("The program links to " + visible(uri)) }, // words may promise another place
    cursorBlink: keys, disableStdin: !keys, minimumContrastRatio: 4.5,
    fontFamily: getComputedStyle(document.documentElement).getPropertyValue("--mono").trim() || "monospace",
  });
  const fit = new FitAddon();
  term.loadAddon(fit);
  term.open(box);
  term.textarea?.setAttribute("aria-label", label);
  if (!keys) term.textarea?.setAttribute("tabindex", "-1");
  return { term, fit };
}

// search finds text in what the terminal holds, from the last hit on.
export function search(term) {
  let row = -1, last = "";
  return (needle) => {
    if (!needle) return term.clearSelection();
    const lower = needle.toLowerCase();
    const buffer = term.buffer.active;
    if (needle !== last) row = buffer.length;
    last = needle;
    for (let n = 1; n <= buffer.length; n++) {
      const at = (row - n + buffer.length * 2) % buffer.length;
      const line = buffer.getLine(at)?.translateToString(true) ?? "";
      const column = line.toLowerCase().indexOf(lower);
      if (column < 0) continue;
      row = at;
      term.select(column, at, needle.length);
      term.scrollToLine(Math.max(0, at - Math.floor(term.rows / 2)));
      return true;
    }
    return false;
  };
}
