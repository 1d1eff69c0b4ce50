// The scores of the newest parts, one beside the other, with the threshold that each was judged by.
import { colour, drawer, fontOf, prepare } from "./drawing.js";
import { number, shortened, when } from "./show.js";

const KEPT = 600; // points: what came before is let go
const [KEY, MS, ID, SCORE, THRESHOLD, ANOMALOUS] = [0, 1, 2, 3, 4, 5];
const NEAR = 14; // pixels

export function scoreChart(canvas, tip, empty, open) {
  let points = [];
  let at = null; // the pointer
  let placed = [];

  const draw = drawer(canvas, () => {
    const { context, width, height } = prepare(canvas);
    const { font, size } = fontOf();
    context.font = font;
    const scored = points.filter((point) => point[SCORE] !== null && point[SCORE] > 0);
    placed = [];
    if (!scored.length) return;
    const box = { left: 3.6 * size, right: width - 4, top: 8, bottom: height - 1.7 * size };
    const scale = scaleOf(scored, box);
    axis(context, scale, box, size);
    const step = (box.right - box.left) / Math.max(60, scored.length);
    const x = (i) => box.right - (scored.length - i - 0.5) * step;
    thresholds(context, scored, x, scale, step);
    const radius = Math.min(4.5, Math.max(2, step * 0.42));
    scored.forEach((point, i) => {
      const place = { x: x(i), y: scale.y(point[SCORE]), point };
      placed.push(place);
      context.fillStyle = colour(point[ANOMALOUS] ? "bad" : point[ANOMALOUS] === false ? "good" : "soft");
      context.beginPath();
      context.arc(place.x, place.y, point[ANOMALOUS] ? radius * 1.35 : radius, 0, 2 * Math.PI);
      context.fill();
    });
    times(context, scored, box, size);
    showTip();
  });

  function nearest() {
    if (!at) return null;
    let best = null;
    for (const place of placed) {
      const distance = Math.hypot(place.x - at.x, place.y - at.y);
      if (distance < NEAR && (!best || distance < best.distance)) best = { ...place, distance };
    }
    return best;
  }

  function showTip() {
    const found = nearest();
    tip.hidden = !found;
    canvas.style.cursor = found ? "pointer" : "default";
    if (!found) return;
    const { point } = found;
    tip.textContent = `${shortened(point[ID])}\n${number(point[SCORE])}${point[THRESHOLD] === null ? "" : ` of ${number(point[THRESHOLD])}`}\n${when(point[MS])}`;
    const left = Math.min(found.x + 12, canvas.clientWidth - tip.offsetWidth - 4);
    tip.style.transform = `translate(${Math.max(0, left)}px, ${Math.max(0, found.y - tip.offsetHeight - 10)}px)`;
  }

  canvas.addEventListener("pointermove", (event) => { at = { x: event.offsetX, y: event.offsetY }; showTip(); });
  canvas.addEventListener("pointerleave", () => { at = null; showTip(); });
  canvas.addEventListener("click", (event) => {
    at = { x: event.offsetX, y: event.offsetY };
    const found = nearest();
    if (found) open(found.point[KEY]);
  });

  return {
    begin() { points = []; },
    push(more) {
      points = points.concat(more).slice(-KEPT);
      describe(canvas, points);
      const none = !points.some((point) => point[SCORE] !== null);
      empty.hidden = !none;
      empty.textContent = points.length ? "No scores yet: the line still learns." : "No results yet.";
      draw();
    },
    get points() { return points; },
  };
}

function describe(canvas, points) {
  const last = points.findLast((point) => point[SCORE] !== null);
  const flagged = points.filter((point) => point[ANOMALOUS]).length;
  const text = last
    ? `Scores of the newest ${points.length} parts: ${flagged} anomalous; the last ${number(last[SCORE])}, threshold ${number(last[THRESHOLD])}`
    : "No scores yet";
  canvas.setAttribute("aria-label", text);
}

function scaleOf(scored, box) {
  const values = scored.flatMap((point) => (point[THRESHOLD] ? [point[SCORE], point[THRESHOLD]] : [point[SCORE]]));
  const low = Math.log(Math.min(...values) / 1.12);
  const high = Math.log(Math.max(...values) * 1.12);
  const y = (value) => box.bottom - ((Math.log(value) - low) / (high - low)) * (box.bottom - box.top);
  return { low: Math.exp(low), high: Math.exp(high), y };
}

function axis(context, scale, box, size) {
  context.textAlign = "right";
  context.textBaseline = "middle";
  let lowest = Infinity;
  for (const tick of ticks(scale.low, scale.high)) {
    const y = scale.y(tick);
    if (lowest - y < 1.6 * size) continue;
    lowest = y;
    context.strokeStyle = colour("line");
    context.lineWidth = 1;
    stroke(context, [[box.left, y], [box.right, y]]);
    context.fillStyle = colour("soft");
    context.fillText(String(tick), box.left - 8, y);
  }
}

function ticks(low, high) {
  const found = [];
  if (!(low > 0 && high < Infinity)) return found; // there would be no end to them
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power += 1) {
    for (const lead of [1, 1.5, 2, 3, 4, 5, 7]) {
      const tick = Number((lead * 10 ** power).toPrecision(2));
      if (tick >= low && tick <= high) found.push(tick);
    }
  }
  return found;
}

function thresholds(context, scored, x, scale, step) {
  context.strokeStyle = colour("ink");
  context.lineWidth = 1.5;
  context.setLineDash([6, 5]);
  let path = [];
  scored.forEach((point, i) => {
    if (point[THRESHOLD]) path.push([x(i) - step / 2, scale.y(point[THRESHOLD])], [x(i) + step / 2, scale.y(point[THRESHOLD])]);
    else { stroke(context, path); path = []; }
  });
  stroke(context, path);
  context.setLineDash([]);
}

function times(context, scored, box, size) {
  context.fillStyle = colour("soft");
  context.textBaseline = "top";
  const y = box.bottom + 0.45 * size;
  context.textAlign = "right";
  context.fillText(when(scored.at(-1)[MS]), box.right, y);
  context.textAlign = "left";
  if (box.right - box.left > 16 * size) context.fillText(when(scored[0][MS]), box.left, y);
}

function stroke(context, path) {
  if (path.length < 2) return;
  context.beginPath();
  path.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.stroke();
}
