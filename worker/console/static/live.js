// The connection to the console: server-sent events, and what is said of an outage.
const HIDDEN_MS = 5000; // a page that nobody sees for so long lets go

const byId = (id) => document.getElementById(id);

function say(state, text) {
  const live = byId("live");
  live.dataset.live = state;
  byId("live-text").textContent = text;
}

function tellAway(text) {
  const away = byId("away");
  away.textContent = text;
  away.hidden = !text;
  say(text ? "off" : "on", text ? "waiting" : "live");
}

// Calls a handler of each event's name with what it carries. A lost connection is taken up again, from the beginning:
// `begun` is called before the first event of each.
export function follow(path, handlers, begun = () => {}) {
  let source = null;
  let hiding = null;
  let told = ""; // why it is away, in the console's words
  const open = () => {
    if (source) return;
    if (document.hidden) { say("wait", "resting"); return; } // a tab that was hidden from the beginning is told nothing
    source = new EventSource(path);
    source.onopen = () => { begun(); tellAway(""); };
    source.onerror = () => {
      tellAway(told || "The console does not answer. This page goes on by itself when it does.");
      told = "";
      if (source && source.readyState === EventSource.CLOSED) { close(); setTimeout(open, 2000); }
    };
    for (const [name, handler] of Object.entries(handlers)) {
      source.addEventListener(name, (event) => handler(JSON.parse(event.data)));
    }
    source.addEventListener("away", (event) => { told = JSON.parse(event.data); tellAway(told); });
  };
  const close = () => {
    if (source) source.close();
    source = null;
  };
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiding);
    if (document.hidden) hiding = setTimeout(() => { close(); say("wait", "resting"); }, HIDDEN_MS);
    else open();
  });
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", open);
  open();
}
