// <replay-view>: a recording, with seek, speed, its commands as chapters, and
// search in what it shows. The events come one JSON value a line.

import { say, visible } from "./app.js";
import { make, open } from "./screen.js";
import { lines } from "./stream.js";

const speeds = [0.5, 1, 2, 4, 8, 16];
const mostBytes = 256 << 20; // what a page may hold of a recording

export const clock = (micros) => {
  const s = Math.max(0, Math.floor(micros / 1e6));
  const two = (n) => String(n).padStart(2, "0");
  return s >= 3600 ? `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}` : `${Math.floor(s / 60)}:${two(s % 60)}`;
};

const escapes = /\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])/g;

class ReplayView extends HTMLElement {
  connectedCallback() {
    const button = this.querySelector("[data-load]");
    if (!button) return;
    button.addEventListener("click", () => {
      button.disabled = true;
      this.load();
    });
    button.disabled = false; // before, nobody would have heard the click
  }

  disconnectedCallback() {
    cancelAnimationFrame(this.frame);
    document.removeEventListener("keydown", this.keys);
  }

  async load() {
    this.events = [];
    this.chapters = [];
    let bytes = 0, whole = false;
    try {
      const answer = await fetch(`/sessions/${this.dataset.session}/replay`, { method: "POST", headers: { Accept: "application/json" } });
      if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).text ?? "the server answered " + answer.status);
      for await (const e of lines(answer)) {
        if (e.k === "end") { whole = true; continue; }
        if (e.k === "broken") { say("The recording breaks off: " + e.x); continue; }
        if (e.d) e.d = Uint8Array.from(atob(e.d), (c) => c.charCodeAt(0)), (bytes += e.d.length);
        if (bytes > mostBytes) { say("Only the first 256 MiB are shown. All of it: handrail replay"); break; }
        if (e.k === "chapter" || e.k === "gap" || e.k === "pause" || e.k === "notice") this.chapters.push(e);
        if (e.k !== "input") this.events.push(e);
      }
    } catch (error) {
      say(error.message);
      const button = this.querySelector("[data-load]");
      if (button) button.disabled = false;
      if (!this.events.length) return;
    }
    if (!whole) say("This recording is not whole");
    this.build();
  }

  build() {
    this.length = this.events.at(-1)?.t ?? 0;
    Object.assign(this, { at: 0, index: 0, speed: 1, playing: false, skip: true });
    this.button = make("button", { type: "button" }, "Pause");
    this.time = make("span", { className: "num" }, "0:00");
    this.scrub = make("input", { type: "range", className: "scrub", min: 0, max: Math.max(1, this.length), value: 0, step: 1000 });
    this.scrub.setAttribute("aria-label", "Position");
    const speed = make("select", {}, ...speeds.map((s) => make("option", { value: s, selected: s === 1 }, s + "×")));
    speed.setAttribute("aria-label", "Speed");
    const find = make("input", { type: "search", placeholder: "Find in the recording" });
    find.setAttribute("aria-label", "Find in the recording");
    const skip = make("button", { type: "button" }, "Skip idle time");
    skip.setAttribute("aria-pressed", "true");
    const bar = make("div", { className: "term-bar" }, this.button, this.time, this.scrub, speed, skip, find);
    const screen = make("div", { className: "term-screen" });
    const frame = make("div", { className: "term" }, bar, screen);
    frame.classList.toggle("is-production", !!document.querySelector(".session-head.is-production"));
    this.replaceChildren(make("div", { className: "replay-body" }, frame, this.list()));
    this.screen = screen;
    const { term } = open(screen, { nonce: this.dataset.nonce, label: this.dataset.label, keys: false });
    this.term = term;
    this.button.addEventListener("click", () => this.play(!this.playing));
    this.scrub.addEventListener("input", () => this.seek(Number(this.scrub.value)));
    speed.addEventListener("change", () => (this.speed = Number(speed.value)));
    skip.addEventListener("click", () => skip.setAttribute("aria-pressed", String((this.skip = !this.skip))));
    find.addEventListener("keydown", (event) => event.key === "Enter" && this.find(find.value));
    this.keys = (event) => this.key(event);
    document.addEventListener("keydown", this.keys);
    this.fit(100, 30);
    const from = Number(this.dataset.at ?? 0);
    if (from > 0) {
      this.seek(from); // it stands still there: what follows may wipe what was looked for
      this.play(false);
      say("Shown at " + clock(this.at));
    } else this.play(true);
    this.button.focus();
  }

  list() {
    const side = make("div", { className: "replay-side" }, make("h2", {}, "Commands"));
    if (!this.chapters.length) {
      side.append(make("p", { className: "replay-none" }, "No command was seen: a program ran, or bytes were copied."));
      return side;
    }
    const list = make("ol");
    this.marks = this.chapters.map((c) => {
      const label = visible(c.k === "chapter" ? c.x : c.k === "gap" ? "gap: " + c.x : c.x || c.k);
      const button = make("button", { type: "button", title: label }, make("span", { className: "num" }, clock(c.t)), make(c.k === "chapter" ? "code" : "em", {}, label));
      button.addEventListener("click", () => (this.seek(c.t), this.play(true)));
      list.append(make("li", {}, button));
      return button;
    });
    side.append(list);
    return side;
  }

  key(event) {
    if (event.target.closest("input[type=search], select, textarea, dialog, button") && event.key !== "ArrowLeft" && event.key !== "ArrowRight") {
      if (!(event.key === " " && event.target === this.button)) return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
    switch (event.key) {
      case " ": event.preventDefault(); this.play(!this.playing); break;
      case "ArrowLeft": event.preventDefault(); this.seek(this.at - 5e6); break;
      case "ArrowRight": event.preventDefault(); this.seek(this.at + 5e6); break;
    }
  }

  play(on) {
    if (on && this.at >= this.length) this.seek(0);
    this.playing = on;
    this.button.textContent = on ? "Pause" : "Play";
    cancelAnimationFrame(this.frame);
    if (!on) return;
    let before = performance.now();
    const step = (now) => {
      this.at += (now - before) * 1000 * this.speed;
      before = now;
      const next = this.events[this.index];
      if (this.skip && next && next.t - this.at > 2e6) this.at = next.t - 5e5; // nothing happens: go on
      this.draw();
      if (this.index >= this.events.length) {
        this.at = this.length;
        return this.play(false);
      }
      this.frame = requestAnimationFrame(step);
    };
    this.frame = requestAnimationFrame(step);
  }

  // seek goes to a time. Backwards means from the start: a terminal has no undo.
  seek(to) {
    to = Math.max(0, Math.min(this.length, to));
    if (to < this.at) {
      this.term.reset();
      this.index = 0;
    }
    this.at = to;
    this.draw();
  }

  draw() {
    while (this.index < this.events.length && this.events[this.index].t <= this.at) this.show(this.events[this.index++]);
    this.time.textContent = clock(Math.min(this.at, this.length)) + " / " + clock(this.length);
    this.scrub.value = this.at;
    this.scrub.setAttribute("aria-valuetext", clock(this.at) + " of " + clock(this.length));
    let current = -1;
    this.chapters.forEach((c, i) => c.t <= this.at && (current = i));
    if (current !== this.current) {
      this.marks?.[this.current]?.removeAttribute("aria-current");
      this.marks?.[current]?.setAttribute("aria-current", "true");
      this.marks?.[current]?.scrollIntoView({ block: "nearest" });
      this.current = current;
    }
  }

  show(e) {
    switch (e.k) {
      case "output":
      case "error": this.term.write(e.d ?? ""); break;
      case "resize": this.fit(e.c, e.r); break;
      case "gap": this.term.write(`\r\n\x1b[33m[gap: ${visible(e.x)}]\x1b[0m\r\n`); break;
    }
  }

  // fit shows the recorded terminal whole: its size, our room.
  fit(columns, rows) {
    if (!columns || !rows) return;
    const size = Math.min((this.screen.clientWidth - 24) / (columns * 0.602), (this.screen.clientHeight - 18) / (rows * 1.2 * 1.17));
    this.term.options.fontSize = Math.max(6, Math.min(14, Math.floor(size)));
    this.term.resize(columns, rows);
  }

  // find goes to the next time at which the text was shown.
  find(needle) {
    needle = needle.trim().toLowerCase();
    if (!needle) return;
    this.text ??= this.events.filter((e) => e.d).map((e) => ({ t: e.t, s: new TextDecoder().decode(e.d).replace(escapes, "").toLowerCase() }));
    // Echoed keys arrive one by one: look across events, from here, then from the start.
    const all = this.text.map((e) => e.s).join("");
    let start = 0;
    const starts = this.text.map((e) => ((start += e.s.length), start));
    const hereIndex = this.text.findIndex((e) => e.t > this.at);
    const from = hereIndex <= 0 ? 0 : starts[hereIndex - 1];
    let hit = hereIndex < 0 ? -1 : all.indexOf(needle, from);
    if (hit < 0) hit = all.indexOf(needle);
    if (hit < 0) return say("Not in this recording");
    const end = hit + needle.length;
    const event = this.text[starts.findIndex((s) => s >= end)];
    this.play(false);
    this.seek(event.t);
    say("Shown at " + clock(event.t));
  }
}

customElements.define("replay-view", ReplayView);
