// One line, live.
import { scoreChart } from "./chart.js";
import { commands, knownModels } from "./commands.js";
import { gallery } from "./gallery.js";
import { histogram } from "./histogram.js";
import { follow } from "./live.js";
import { opacity } from "./opacity.js";
import { showRow } from "./show.js";
import { resultsTable, showJournal } from "./tables.js";

const byId = (id) => document.getElementById(id);
const root = byId("line");
const name = root.dataset.line;
const chart = scoreChart(byId("chart"), byId("tip"), byId("chart-empty"), (key) => { window.location.href = `/lines/${name}/scores/${key}`; });
const bars = histogram(byId("histogram"), byId("histogram-empty"));
const flagged = gallery(name);
const results = resultsTable(name);

function buttons(paused) {
  byId("pause").hidden = paused;
  byId("resume").hidden = !paused;
}

opacity();
commands();
buttons("paused" in root.dataset);
follow(`/lines/${name}/events`, {
  points(points) {
    chart.push(points);
    results.push(points);
    bars.show(chart.points);
  },
  status(row) {
    showRow(root, row);
    buttons(row.paused);
    knownModels(row.models);
    bars.judged(row.threshold);
  },
  calibration: bars.calibrated,
  review: flagged.show,
  journal: showJournal,
}, () => { chart.begin(); results.begin(); });
