// Puts texts into a page. Never markup: what comes from a stream is text, whatever it looks like.
const TODAY = { hour: "2-digit", minute: "2-digit", second: "2-digit" };
const OTHER = { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" };
const TAIL = 16; // characters

export function when(ms) {
  const date = new Date(ms);
  const today = date.toDateString() === new Date().toDateString();
  return date.toLocaleString(undefined, today ? TODAY : OTHER);
}

export function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  if (text !== "") made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export function timeOf(ms) {
  return element("time", when(ms), { datetime: new Date(ms).toISOString(), title: new Date(ms).toLocaleString() });
}

export function localTimes(root = document) {
  for (const time of root.querySelectorAll("time[data-ms]")) {
    const date = new Date(Number(time.dataset.ms));
    if (Number.isNaN(date.getTime())) continue;
    time.dateTime = date.toISOString();
    time.textContent = "short" in time.dataset ? when(date) : date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
  }
}

export function verdict(anomalous) {
  const word = anomalous === true ? "anomalous" : anomalous === false ? "normal" : "no verdict";
  return element("span", word, { class: "verdict", "data-verdict": word });
}

export function number(value) {
  if (value === null) return "–";
  return Math.abs(value) >= 1000 ? value.toFixed(0) : value.toPrecision(4);
}

// An id, cut in its middle: where it is a path, the file's name stands at its end.
export function shortened(id) {
  return id.length <= 64 ? id : `${id.slice(0, 31)}…${id.slice(-32)}`;
}

// The same, to the width that there is.
export function bothEnds(node, id) {
  node.classList.add("ends");
  const shown = shortened(id);
  const parts = shown.length > 2 * TAIL ? [shown.slice(0, -TAIL), shown.slice(-TAIL)] : [shown];
  node.append(...parts.map((part) => element("span", part)));
  return node;
}

// Why there is no picture, in the console's words: an <img> is told only that there is none.
export async function whyNone(src) {
  try {
    const answer = await fetch(src);
    return answer.ok ? "The picture did not arrive." : (await answer.text()).trim();
  } catch {
    return "The console does not answer.";
  }
}

function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// A line's status into the elements that name its figures.
export function showRow(root, row) {
  if (root.dataset.state !== row.state) root.dataset.state = row.state;
  for (const node of root.querySelectorAll("[data-text]")) set(node, row.texts[node.dataset.text] ?? "");
  for (const node of root.querySelectorAll("[data-figure]")) node.toggleAttribute("data-alarm", Boolean(row.alarms[node.dataset.figure]));
  for (const name of ["problem", "note"]) {
    const node = root.querySelector(`[data-${name}]`);
    if (node) { set(node, row[name]); node.hidden = !row[name]; }
  }
  const progress = root.querySelector("[data-progress]");
  if (progress) {
    progress.hidden = row.progress === null;
    progress.querySelector("progress").value = row.progress ?? 0;
  }
}
