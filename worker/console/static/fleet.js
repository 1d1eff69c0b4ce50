// All lines, live.
import { follow } from "./live.js";
import { showRow } from "./show.js";
import { drawSpark } from "./spark.js";
import { drawer } from "./drawing.js";

const list = document.getElementById("lines");
const cards = new Map();
for (const card of list.children) {
  const canvas = card.querySelector("canvas");
  const state = { card, spark: [] };
  state.draw = drawer(canvas, () => drawSpark(canvas, state.spark));
  cards.set(card.dataset.line, state);
}

function summary(rows) {
  const speeds = rows.map((row) => Number(row.texts.per_second)).filter(Number.isFinite);
  const speed = speeds.reduce((sum, value) => sum + value, 0);
  const [stopped, wrong] = ["stopped", "problem"].map((state) => rows.filter((row) => row.state === state).length);
  const parts = [`${rows.length} ${rows.length === 1 ? "line" : "lines"}`];
  if (speeds.length) parts.push(`${speed.toFixed(1)} images/s`);
  if (stopped) parts.push(`${stopped} stopped`);
  if (wrong) parts.push(`${wrong} with a problem`);
  document.getElementById("summary").textContent = parts.join(" · ");
}

follow("/events", {
  fleet(rows) {
    if (rows.length !== cards.size || rows.some((row) => !cards.has(row.line))) {
      window.location.reload(); // a line came or went
      return;
    }
    for (const row of rows) {
      const state = cards.get(row.line);
      showRow(state.card, row);
      state.spark = row.spark;
      state.draw();
    }
    summary(rows);
  },
});
