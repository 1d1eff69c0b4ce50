// The newest results, and what the line was told.
import { bothEnds, element, number, timeOf, verdict } from "./show.js";

const KEPT = 600;
const SHOWN = 12;
const [KEY, MS, ID, SCORE, , ANOMALOUS] = [0, 1, 2, 3, 4, 5];

export function resultsTable(line) {
  const body = document.querySelector("#results tbody");
  const find = document.getElementById("find");
  let points = [];
  let asked = false;

  function draw() {
    asked = false;
    const wanted = find.value.trim().toLowerCase();
    const found = [];
    for (let i = points.length - 1; i >= 0 && found.length < SHOWN; i -= 1) {
      if (points[i][ID].toLowerCase().includes(wanted)) found.push(points[i]);
    }
    body.replaceChildren(...found.map((point) => rowOf(line, point)));
  }
  function ask() {
    if (asked || document.querySelector("#results a:focus")) return; // no row is taken from under a focus
    asked = true;
    setTimeout(draw, 100);
  }
  find.addEventListener("input", draw);
  return {
    begin() { points = []; },
    push(more) { points = points.concat(more).slice(-KEPT); ask(); },
  };
}

function rowOf(line, point) {
  const row = element("tr");
  const id = element("td");
  id.append(bothEnds(element("a", "", { href: `/lines/${line}/scores/${point[KEY]}`, title: point[ID] }), point[ID] || "(no id)"));
  const time = element("td");
  time.append(timeOf(point[MS]));
  const said = element("td");
  said.append(verdict(point[ANOMALOUS]));
  row.append(time, id, element("td", number(point[SCORE]), { class: "num" }), said);
  return row;
}

export function showJournal(told) {
  document.getElementById("journal-empty").hidden = told.length > 0;
  document.getElementById("journal").hidden = told.length === 0;
  document.querySelector("#journal tbody").replaceChildren(...told.map((entry) => {
    const row = element("tr");
    const time = element("td");
    time.append(timeOf(entry.ms));
    const what = element("td", entry.args && ` ${entry.args}`);
    what.prepend(element("span", entry.name));
    row.append(time, element("td", entry.by), what, element("td", entry.text, { "data-ok": String(entry.ok) }));
    return row;
  }));
}
