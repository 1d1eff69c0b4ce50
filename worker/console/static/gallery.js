// The flagged parts: pictures with the heat map over them.
import { bothEnds, element, timeOf, whyNone } from "./show.js";

const PAGE = 18; // parts, about: shown at first, and as many more with each press, in whole rows
const REFRESH_MS = 1000;

export function gallery(line) {
  const list = document.getElementById("gallery");
  const more = document.getElementById("gallery-more");
  const fresh = document.getElementById("gallery-new");
  const empty = document.getElementById("gallery-empty");
  const count = document.getElementById("gallery-count");
  const items = new Map();
  let parts = [];
  let pages = 1;
  let drawnAt = 0;
  let waiting = null;

  const shown = () => {
    const columns = getComputedStyle(list).gridTemplateColumns.split(" ").length;
    return pages * columns * Math.max(2, Math.round(PAGE / columns));
  };
  // Asked each time: a browser puts it back when somebody comes back to the page, and tells no script.
  const order = () => document.querySelector('[name="order"]:checked').value;
  // As the arrows of a part's page go: rows.largest_first.
  const ordered = () => (order() === "newest" ? parts : [...parts].sort((a, b) => (b.ratio ?? -1) - (a.ratio ?? -1)));

  function draw() {
    drawnAt = Date.now();
    fresh.hidden = true;
    const wanted = ordered().slice(0, shown());
    const keys = new Set(wanted.map((part) => part.key));
    for (const [key, item] of items) if (!keys.has(key)) { item.remove(); items.delete(key); }
    wanted.forEach((part, place) => {
      if (!items.has(part.key)) items.set(part.key, itemOf(line, part));
      const item = items.get(part.key);
      item.querySelector("a").href = hrefOf(line, part, order());
      if (list.children[place] !== item) list.insertBefore(item, list.children[place] ?? null);
    });
    more.hidden = parts.length <= wanted.length;
    empty.hidden = parts.length > 0;
    count.textContent = parts.length ? String(parts.length) : "";
  }

  function newer() {
    return parts.filter((part) => !items.has(part.key)).length;
  }

  // Nothing moves under a pointer or a focus: what came is offered instead.
  function update() {
    clearTimeout(waiting);
    const busy = items.size > 0 && (list.matches(":hover") || list.contains(document.activeElement));
    if (busy && order() === "newest") {
      const coming = parts.findIndex((part) => items.has(part.key));
      fresh.hidden = coming <= 0;
      fresh.textContent = `Show ${coming} new`;
      return;
    }
    waiting = setTimeout(draw, Math.max(0, REFRESH_MS - (Date.now() - drawnAt)));
  }

  list.addEventListener("pointerleave", () => { if (newer()) update(); });
  fresh.addEventListener("click", draw);
  more.addEventListener("click", () => { pages += 1; draw(); });
  for (const choice of document.querySelectorAll('[name="order"]')) {
    choice.addEventListener("change", draw);
  }
  window.addEventListener("pageshow", () => { if (items.size) draw(); });
  return { show(found) { parts = found; if (items.size) update(); else draw(); } };
}

function hrefOf(line, part, order) {
  return `/lines/${line}/review/${part.key}${order === "largest" ? "?order=largest" : ""}`;
}

function itemOf(line, part) {
  const item = element("li", "", { "data-why": part.why, "data-key": part.key });
  const link = element("a", "", { title: part.title });
  const stack = element("span", "", { class: "stack" });
  const base = `/lines/${line}/review/${part.key}`;
  if (part.picture) {
    const picture = element("img", "", { class: "picture", loading: "lazy", alt: `Part ${part.id}, ${part.why}`, src: `${base}/thumb.jpg` });
    picture.addEventListener("error", async () => {
      const gone = element("span", "no picture", { class: "gone" });
      picture.replaceWith(gone);
      gone.textContent = await whyNone(`${base}/thumb.jpg`);
    });
    stack.append(picture);
  } else {
    stack.append(element("span", "no picture was kept", { class: "gone" }));
  }
  if (part.why === "anomalous") {
    const heat = element("img", "", { class: "heat", loading: "lazy", alt: "", src: `${base}/heat.png` });
    heat.addEventListener("error", () => heat.remove());
    stack.append(heat);
  }
  const caption = element("span", "", { class: "cap" });
  const first = element("b");
  const times = part.ratio === null ? part.times : `${part.ratio.toFixed(part.ratio < 10 ? 2 : 0)} ×`;
  first.append(element("span", times, { title: part.times }), timeOf(part.ms));
  caption.append(first, bothEnds(element("span", "", { class: "soft" }), part.id || "(no id)"));
  link.append(stack, caption);
  item.append(link);
  return item;
}
