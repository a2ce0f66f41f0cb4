// What every page does: keys, dialogs, copying, times, and following events.
// Islands are modules of their own. Nothing here holds state that the URL or
// the server does not have.

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

// --- text of others ---
// visible shows what is made not to be seen (U+202E turns text around), as the
// pages do it on the server: what comes by a stream or as JSON is of no page.
const unseen = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Co}\p{Variation_Selector}\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0]/gu;
export const visible = (text) => String(text ?? "").replace(unseen, (c) => (c === "\n" || c === "\t" ? " " : `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`));

// --- saying something to everybody, screen readers included ---
let quiet;
export function say(text) {
  const box = $("#say");
  if (!box) return;
  box.textContent = visible(text);
  clearTimeout(quiet);
  quiet = setTimeout(() => (box.textContent = ""), 2200);
}

// --- copying a command ---
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    say("Copied");
  } catch {
    const range = document.createRange(); // no clipboard here: select it instead
    range.selectNodeContents(button.parentElement.querySelector("code"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    say("Selected: copy it with Ctrl C");
  }
});

// --- dialogs, the menu, and forms that ask first ---
function openDialog(id) {
  const dialog = document.getElementById(id);
  if (!dialog || dialog.open) return;
  for (const d of $$("details.you[open]")) d.open = false;
  dialog.showModal();
  if (id === "palette") {
    const input = $("#palette-q");
    input.value = "";
    input.dispatchEvent(new CustomEvent("handrail:open"));
  }
}
document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-dialog]");
  if (opener) return openDialog(opener.dataset.dialog);
  if (event.target.closest("[data-close]")) event.target.closest("dialog").close();
  if (event.target.matches("dialog")) event.target.close(); // its backdrop
  const menu = event.target.closest("[data-menu]");
  const side = $("#side");
  if (menu) {
    const open = side.classList.toggle("is-open");
    menu.setAttribute("aria-expanded", String(open));
    if (open) $("a", side)?.focus();
  } else if (side && !event.target.closest("#side")) {
    side.classList.remove("is-open");
    $("[data-menu]")?.setAttribute("aria-expanded", "false");
  }
  for (const d of $$("details.you[open]")) if (!d.contains(event.target)) d.open = false;
});
document.addEventListener("close", () => setTimeout(flush), true);

document.addEventListener("submit", (event) => {
  const form = event.target;
  const ask = event.submitter?.dataset.confirm;
  if (ask && !confirm(ask)) return event.preventDefault();
  if (form.matches("[data-size]")) sizeOf(form);
  if (form.method === "post" && event.submitter) {
    if (form.dataset.sent) return event.preventDefault(); // a double click is one click
    form.dataset.sent = "1";
    setTimeout(() => delete form.dataset.sent, 4000);
  }
});
// A page taken from the back-forward cache may be sent again.
addEventListener("pageshow", () => $$("form[data-sent]").forEach((f) => delete f.dataset.sent));

// sizeOf tells the server how large the terminal will be.
function sizeOf(form) {
  const main = $("#main");
  const width = (main?.clientWidth ?? 900) - 30;
  const height = Math.max(280, Math.min(innerHeight * 0.62, 640)) - 20;
  for (const [name, value] of [["columns", Math.floor(width / 7.8)], ["rows", Math.floor(height / 17)]]) {
    const input = Object.assign(document.createElement("input"), { type: "hidden", name, value: String(Math.max(value, 20)) });
    form.append(input);
  }
}

// Requests carry an id chosen here, so that sending one twice is sending it once.
for (const input of $$("[data-random]")) {
  input.value = "w-" + Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");
}

// --- times: relative, counting; the absolute one on hover, in local time ---
function span(seconds) {
  if (seconds < 60) return Math.floor(seconds) + " s";
  if (seconds < 3600) return Math.floor(seconds / 60) + " min";
  if (seconds < 86400) {
    const minutes = Math.floor((seconds % 3600) / 60);
    return Math.floor(seconds / 3600) + " h" + (minutes ? " " + minutes + " min" : "");
  }
  const days = Math.floor(seconds / 86400);
  return days === 1 ? "1 day" : days + " days";
}
function countdown(seconds) {
  if (seconds <= 0) return "over";
  if (seconds >= 3600) return span(seconds) + " left";
  return Math.floor(seconds / 60) + ":" + String(Math.floor(seconds % 60)).padStart(2, "0") + " left";
}
const skew = (() => { // of this clock to the server's: relative times must not lie
  const first = $("time[datetime]:not([data-until])");
  const m = first && /^(\d+) s ago$/.exec(first.textContent);
  if (!m) return 0;
  const off = Date.now() - new Date(first.dateTime).getTime() - m[1] * 1000;
  return Math.abs(off) > 30_000 ? off : 0;
})();
function tick() {
  const now = Date.now() - skew;
  for (const el of $$("time[datetime]")) {
    const at = new Date(el.dateTime).getTime();
    if (Number.isNaN(at)) continue;
    if (!el.dataset.local) {
      el.dataset.local = "1";
      el.title = new Date(at).toLocaleString(undefined, { dateStyle: "full", timeStyle: "long" });
    }
    const seconds = (now - at) / 1000;
    let text;
    if ("until" in el.dataset) {
      text = countdown(-seconds);
      el.classList.toggle("is-soon", seconds < 0 && -seconds < 120);
    } else if (seconds < 0) text = "in " + span(-seconds);
    else text = seconds < 5 ? "just now" : span(seconds) + " ago";
    if (el.textContent !== text) el.textContent = text;
  }
}
tick();
setInterval(tick, 1000);

// --- keys ---
const typing = (el) => el?.closest?.("input, textarea, select, [contenteditable], .xterm, dialog[open]");
let going = 0;
document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && !event.altKey && event.key.toLowerCase() === "k" && !event.target.closest?.(".xterm")) {
    event.preventDefault();
    return openDialog("palette");
  }
  if (event.key === "Escape") {
    $("#side")?.classList.remove("is-open");
    for (const d of $$("details.you[open]")) d.open = false;
    if (event.target.matches?.("[data-filter]")) event.target.blur();
  }
  if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
  if (going && Date.now() - going < 1200) {
    going = 0;
    const link = $(`#side a[data-key="${CSS.escape(event.key)}"]`);
    if (link) {
      event.preventDefault();
      link.click();
    }
    return;
  }
  switch (event.key) {
    case "g": going = Date.now(); break;
    case "?": event.preventDefault(); openDialog("keys"); break;
    case "/": {
      const filter = $("[data-filter]");
      event.preventDefault();
      if (filter) filter.select(), filter.focus();
      else openDialog("palette");
      break;
    }
    case "j": step(1, event); break;
    case "k": step(-1, event); break;
  }
});

// step moves between the rows of the page.
function step(by, event) {
  const rows = $$("main .row-link, main .need-title").filter((a) => a.checkVisibility());
  if (!rows.length) return;
  event.preventDefault();
  const here = rows.indexOf(document.activeElement);
  const next = rows[here < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.max(0, Math.min(rows.length - 1, here + by))];
  next.focus();
  next.scrollIntoView({ block: "nearest" });
}

// A filter is part of the address: what is on the page can be sent to somebody.
// What it filters is fetched by the address of that moment, also when something
// else asks for it: an answer without the filter must not overtake it.
let filtering;
document.addEventListener("input", (event) => {
  const form = event.target.closest("form[data-filters]");
  if (!form) return;
  const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
  history.replaceState(null, "", form.getAttribute("action") + (query.size ? "?" + query : ""));
  clearTimeout(filtering);
  filtering = setTimeout(() => filter(form), 150);
});
document.addEventListener("submit", (event) => {
  if (!event.target.matches("[data-filters]")) return;
  event.preventDefault();
  clearTimeout(filtering);
  filter(event.target);
});
function filter(form) {
  const section = document.getElementById(form.dataset.filters);
  section.dispatchEvent(new CustomEvent("htmx:abort")); // it answers to an older filter
  section.dispatchEvent(new CustomEvent("handrail:changed"));
}
document.addEventListener("htmx:config:request", (event) => {
  const { ctx } = event.detail;
  if ($(`form[data-filters="${ctx.sourceElement.id}"]`)) ctx.request.action = location.pathname + location.search;
});

// The palette: arrows move, Enter goes. Who types quicker than the answer comes
// goes to what they typed, not to what stood there before.
const palette = $("#palette");
let finding = false, hurry = false;
palette?.addEventListener("input", () => ((finding = true), (hurry = false)));
palette?.addEventListener("htmx:after:swap", () => {
  finding = false;
  if (hurry) $("#palette-hits a")?.click();
  hurry = false;
});
palette?.addEventListener("close", () => (finding = hurry = false));
palette?.addEventListener("keydown", (event) => {
  const hits = $$("#palette-hits a");
  const here = hits.findIndex((a) => a.classList.contains("is-here"));
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    const next = Math.max(0, Math.min(hits.length - 1, here + (event.key === "ArrowDown" ? 1 : -1)));
    hits.forEach((a, i) => a.classList.toggle("is-here", i === next));
    hits[next]?.scrollIntoView({ block: "nearest" });
  } else if (event.key === "Enter") {
    event.preventDefault();
    if (finding && here < 0) hurry = true;
    else (hits[here] ?? hits[0])?.click();
  }
});

// --- following what happens: one stream a visible tab ---
let stream;
let cut;
const due = new Set(); // sections to fetch again
function show(state, word) {
  const box = $("#live");
  if (!box) return;
  box.dataset.state = state;
  $("#live-word").textContent = word;
  box.title = state === "stale" ? "The connection is cut: what you see may be old" : "This page follows what happens";
}
function follow() {
  const url = document.body.dataset.events;
  if (!url || stream || document.hidden) return;
  let lost = false;
  stream = new EventSource(url);
  stream.addEventListener("hello", () => {
    clearTimeout(cut);
    cut = 0;
    show("live", "live");
    if (lost) refresh(null); // something may have happened in between
    lost = false;
  });
  stream.addEventListener("change", (event) => {
    const { topic, id } = JSON.parse(event.data);
    document.dispatchEvent(new CustomEvent("handrail:topic", { detail: { topic, id } }));
    refresh(topic);
  });
  stream.addEventListener("error", () => {
    lost = true;
    if (!cut) cut = setTimeout(() => show("stale", "stale since " + new Date().toLocaleTimeString()), 1500);
    if (stream?.readyState === EventSource.CLOSED) {
      stream = undefined;
      setTimeout(follow, 3000);
    }
  });
}
function unfollow() {
  stream?.close();
  stream = undefined;
}
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return unfollow();
  if (document.body.dataset.events) refresh(null);
  follow();
});
addEventListener("pagehide", unfollow);
addEventListener("pageshow", follow);

let waiting;
let flushed = 0;
export function refresh(topic) {
  for (const el of $$("[data-live]")) {
    if (topic === null || el.dataset.live.split(" ").includes(topic)) due.add(el.id);
  }
  // Many changes are one, and a busy installation is fetched once a second.
  if (!waiting) waiting = setTimeout(flush, Date.now() - flushed < 1000 ? 1000 : 120);
}
// flush fetches what is due, but not what somebody is typing into: that waits
// until they are done.
function flush() {
  clearTimeout(waiting);
  waiting = undefined;
  flushed = Date.now();
  for (const id of due) {
    const el = document.getElementById(id);
    if (!el) { due.delete(id); continue; }
    const busy = el.querySelector("dialog[open]") ||
      (el.contains(document.activeElement) && document.activeElement.matches("input, textarea, select"));
    if (busy) continue;
    due.delete(id);
    el.dispatchEvent(new CustomEvent("handrail:changed"));
  }
}
document.addEventListener("focusout", () => due.size && setTimeout(flush, 50));
document.addEventListener("htmx:after:swap", tick);
follow();

// A done message is said once: a reload must not say it again.
const here = new URL(location.href);
if (here.searchParams.has("ok")) {
  here.searchParams.delete("ok");
  history.replaceState(null, "", here);
}
