// <term-view>: a live session. It attaches with a one-use ticket, and speaks
// AttachFrame over a WebSocket: input and size to the session, output from it,
// and how much of that output it has shown, so that the server can wait.

import { refresh, say, visible } from "./app.js";
import { decode, encode } from "./frame.js";
import { make, open, search, silence } from "./screen.js";
import "./replay.js";

const reasons = {
  hangup: "The person's connection went away.", lost: "The host or its connection was lost.", expired: "Time was up.",
  budget: "The session used up its share of the host.", shutdown: "handrail was stopped.", stopped: "The session was stopped.",
};
const modes = { own: "your session", watch: "watching", join: "joined: your keys count" };

class TermView extends HTMLElement {
  connectedCallback() {
    if (this.term) return;
    this.session = this.dataset.session;
    this.build();
    if (this.dataset.ticket) {
      // The page came from a form: give it its own address, without the form.
      history.replaceState(null, "", "/sessions/" + this.session);
      this.attach(this.dataset.mode, this.dataset.ticket);
      delete this.dataset.ticket;
    } else if (this.dataset.mode) this.start(this.dataset.mode);
    else this.notice("You may not watch this session.", true);
    this.joiner = (event) => event.target.closest("[data-join]") && this.start("join");
    document.addEventListener("click", this.joiner);
  }

  disconnectedCallback() {
    document.removeEventListener("click", this.joiner);
    this.watcher?.disconnect();
    this.socket?.close();
  }

  build() {
    this.word = make("strong", {}, "connecting…");
    this.hint = make("span", { className: "dim-term" }, "");
    const find = make("input", { type: "search", placeholder: "Find in the output" });
    find.setAttribute("aria-label", "Find in the output");
    const bar = make("div", { className: "term-bar" }, this.word, this.hint, make("span", { className: "grow" }), find);
    this.notices = make("div", { className: "term-notice", hidden: true });
    this.notices.setAttribute("role", "status");
    const screen = make("div", { className: "term-screen" });
    const frame = make("div", { className: "term" }, bar, this.notices, screen);
    frame.classList.toggle("is-production", !!document.querySelector(".session-head.is-production"));
    this.append(frame);
    const { term, fit } = open(screen, { nonce: this.dataset.nonce, label: "Terminal: " + this.dataset.label, keys: true });
    Object.assign(this, { term, fit });
    silence(term, () => this.mode !== "own");
    const seek = search(term);
    find.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !seek(find.value)) say("Not found");
      if (event.key === "Escape") term.focus();
    });
    term.attachCustomKeyEventHandler((event) => this.key(event, find));
    term.onData((data) => (this.mode === "own" || !/^\x1b\[[IO]$/.test(data)) && this.send(encode.input(data))); // focus is not typing
    term.onBinary((data) => this.send(encode.input(Uint8Array.from(data, (c) => c.charCodeAt(0)))));
    term.onResize(({ cols, rows }) => this.mode === "own" && this.send(encode.resize(cols, rows)));
    this.watcher = new ResizeObserver(() => {
      if (this.mode === "own") fit.fit();
      else this.shrink();
    });
    this.watcher.observe(screen);
    fit.fit();
  }

  // key keeps a few keys from the session: leaving the terminal, and copying.
  key(event, find) {
    if (event.type !== "keydown") return true;
    if (event.ctrlKey && event.shiftKey && (event.key === "." || event.key === ">")) {
      event.preventDefault();
      find.focus();
      return false;
    }
    if (event.ctrlKey && event.key.toLowerCase() === "c" && this.term.hasSelection()) {
      navigator.clipboard?.writeText(this.term.getSelection()).then(() => say("Copied"));
      this.term.clearSelection();
      event.preventDefault();
      return false;
    }
    return !(event.ctrlKey && event.shiftKey && event.key.toLowerCase() === "v"); // the browser pastes
  }

  async start(mode) {
    try {
      const answer = await fetch(`/sessions/${this.session}/ticket`, {
        method: "POST", headers: { "Content-Type": "application/json", Accept: "application/json" }, body: JSON.stringify({ mode }),
      });
      const got = await answer.json().catch(() => ({}));
      if (answer.ok) return this.attach(mode, got.ticket);
      this.over = got.kind === "conflict"; // it ended while we came
      throw new Error([got.text, got.hint].filter(Boolean).join(". Next: ") || "the server answered " + answer.status);
    } catch (error) {
      this.mode = mode;
      this.word.textContent = "not attached";
      this.notice(error.message, true);
      this.closed();
    }
  }

  attach(mode, ticket) {
    this.socket?.close();
    this.mode = mode;
    this.term.options.disableStdin = mode === "watch";
    this.term.reset();
    const base = location.origin.replace(/^http/, "ws");
    const socket = new WebSocket(`${base}/v1/sessions/${this.session}/attach?ticket=${encodeURIComponent(ticket)}`);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.shown = 0;
    this.over = this.ending = false;
    socket.addEventListener("open", () => {
      this.word.textContent = modes[mode] ?? mode;
      this.hint.textContent = mode === "watch" ? "" : "Ctrl Shift . leaves the terminal";
      if (mode === "own") {
        this.fit.fit();
        this.send(encode.resize(this.term.cols, this.term.rows));
      }
      if (mode !== "watch") this.term.focus();
    });
    socket.addEventListener("message", (event) => {
      try {
        this.take(decode(new Uint8Array(event.data)));
      } catch (error) {
        this.notice("Cannot read what the server sent: " + error.message, true);
        socket.close();
      }
    });
    socket.addEventListener("close", () => socket === this.socket && this.closed());
  }

  send(frame) {
    if (this.socket?.readyState === WebSocket.OPEN && (this.mode !== "watch" || frame[0] === 0x48)) this.socket.send(frame);
  }

  // take handles one frame. Output is acknowledged when it is on the screen.
  take(frame) {
    switch (frame.kind) {
      case "output":
      case "error": {
        const n = frame.data.length;
        this.term.write(frame.data, () => {
          this.shown += n;
          if (this.shown >= 16384 || !this.acking) {
            this.acking ??= setTimeout(() => this.acknowledge(), 50);
            if (this.shown >= 16384) this.acknowledge();
          }
        });
        break;
      }
      case "resize":
        if (this.mode !== "own" && frame.columns > 0 && frame.rows > 0) {
          this.size = [frame.columns, frame.rows];
          this.shrink();
        }
        break;
      case "notice":
        if (frame.what === "ended") this.ended(frame.text);
        else if (!this.ending) this.notice(frame.text, frame.what === "refusal" || frame.what === "ending");
        this.ending ||= frame.what === "ending";
        if (frame.what === "paused" || frame.what === "resumed") this.word.textContent = frame.what === "paused" ? "paused" : modes[this.mode];
        break;
      case "session":
        refresh("sessions"); // the head of the page says the same
        if (frame.state === "paused") this.word.textContent = "paused" + (frame.pausedWhy ? ": " + visible(frame.pausedWhy) : "");
        else if (frame.state === "live") this.word.textContent = modes[this.mode];
        else if (frame.state === "ended") this.over = true;
        break;
      case "exit":
        this.over = true;
        refresh("sessions");
        this.word.textContent = frame.status === 0 || this.ending ? "ended" : "ended, exit " + frame.status;
    }
  }

  // ended says why, in words, unless it was said already or the person left.
  ended(why) {
    if (this.ending || why === "exit") return;
    this.notice(reasons[why] ?? why, true);
  }

  acknowledge() {
    clearTimeout(this.acking);
    this.acking = undefined;
    if (this.shown > 0) this.send(encode.acknowledged(this.shown));
    this.shown = 0;
  }

  // shrink shows another person's terminal whole: its size, our room.
  shrink() {
    if (!this.size) return;
    const [columns, rows] = this.size;
    const box = this.term.element.parentElement;
    const size = Math.min((box.clientWidth - 24) / (columns * 0.602), (box.clientHeight - 18) / (rows * 1.2 * 1.17));
    this.term.options.fontSize = Math.max(7, Math.min(14, Math.floor(size)));
    this.term.resize(columns, rows);
  }

  closed() {
    refresh("sessions");
    this.over ||= document.querySelector("#session-live [data-state]")?.dataset.state === "ended";
    this.term.options.disableStdin = true;
    const again = make("button", { type: "button" }, this.over ? "See the recording" : "Connect again");
    again.addEventListener("click", () => (this.over ? location.reload() : this.start(this.mode === "own" ? "join" : this.mode)));
    if (!this.over) this.word.textContent = "the connection is cut";
    this.hint.replaceChildren(again);
  }

  notice(text, bad) {
    this.notices.textContent = visible(text);
    this.notices.hidden = !text;
    this.notices.classList.toggle("is-bad", !!bad);
  }
}

customElements.define("term-view", TermView);
