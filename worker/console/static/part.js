// One part: its picture, the buttons, the keys, and when it comes again.
import { commands, keys } from "./commands.js";
import { follow } from "./live.js";
import { opacity } from "./opacity.js";
import { element, localTimes, number, timeOf, verdict, whyNone } from "./show.js";

const [KEY, MS, ID, SCORE, , ANOMALOUS] = [0, 1, 2, 3, 4, 5];
const SHOWN = 20;
const byId = (id) => document.getElementById(id);
const { line, id, own } = byId("part").dataset;
const rows = document.querySelector("#again tbody");
const known = new Set([...rows.querySelectorAll("a")].map((link) => link.getAttribute("href")));

async function gone() {
  byId("picture").hidden = true;
  byId("picture-gone").hidden = false;
  byId("picture-gone").textContent = await whyNone(picture.src);
}

// As large as the window has room for, whatever the camera's resolution and shape.
function fit() {
  byId("stack").style.setProperty("--ratio", String(picture.naturalWidth / picture.naturalHeight));
}

const picture = byId("picture");
if (picture.complete) (picture.naturalWidth ? fit : gone)();
picture.addEventListener("load", fit);
picture.addEventListener("error", gone);

async function noMap() {
  const src = heat.src;
  heat.remove();
  byId("no-map").hidden = false;
  byId("no-map").textContent = await whyNone(src);
}

const heat = byId("heat");
if (heat?.complete && !heat.naturalWidth) noMap();
heat?.addEventListener("error", noMap);

function again(points) {
  for (const point of points) {
    const href = `/lines/${line}/scores/${point[KEY]}`;
    if (point[ID] !== id || known.has(href) || point[KEY] === own) continue;
    known.add(href);
    const row = element("tr");
    const link = element("a", "", { href });
    link.append(timeOf(point[MS]));
    const time = element("td");
    time.append(link);
    const said = element("td");
    said.append(verdict(point[ANOMALOUS]));
    row.append(time, element("td", number(point[SCORE]), { class: "num" }), said);
    rows.prepend(row);
    while (rows.children.length > SHOWN) rows.lastElementChild.remove();
  }
  byId("again").hidden = !rows.children.length;
  byId("again-empty").hidden = rows.children.length > 0;
}

localTimes();
again([]);
opacity();
commands();
keys({ ArrowLeft: "previous", ArrowRight: "next", n: "normal", b: "anomalous" });
follow(`/lines/${line}/events`, { points: again });
