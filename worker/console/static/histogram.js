// The newest scores against those of calibration, as shares of each.
import { colour, drawer, fontOf, prepare } from "./drawing.js";
import { number } from "./show.js";

const SCORE = 3;
const BEYOND = 1.6; // thresholds: what is above lies in the last bar

export function histogram(canvas, empty) {
  let calibration = null;
  let threshold = null;
  let scores = [];

  const draw = drawer(canvas, () => {
    const { context, width, height } = prepare(canvas);
    const { font, size } = fontOf();
    context.font = font;
    const ready = calibration && scores.length;
    empty.hidden = Boolean(ready);
    empty.textContent = calibration ? "No scores yet." : "Nothing to compare with until the line is calibrated.";
    if (!ready) return;
    const bins = binsOf(calibration, threshold, scores);
    const box = { left: 4, right: width - 4, top: 8, bottom: height - 1.7 * size };
    const top = Math.max(...bins.then, ...bins.now.slice(0, -1)) * 1.15; // what lies beyond may stand out of the picture
    const step = (box.right - box.left) / bins.now.length;
    const y = (share) => box.bottom - Math.min(1, share / top) * (box.bottom - box.top);
    const x = (score) => box.left + ((score - bins.low) / bins.width) * step;
    bars(context, bins, box, step, y, threshold);
    outline(context, bins.then, box, step, y);
    baseline(context, bins, box, size, threshold, x);
    canvas.setAttribute("aria-label", told(bins, scores, threshold));
  });

  return {
    calibrated(bins) { calibration = bins; draw(); },
    judged(limit) { threshold = limit; draw(); },
    show(points) { scores = points.filter((point) => point[SCORE] !== null).map((point) => point[SCORE]); draw(); },
  };
}

function binsOf(calibration, threshold, scores) {
  const { low, high, counts } = calibration;
  const width = (high - low) / counts.length;
  const before = Math.max(0, Math.min(8, Math.ceil((low - Math.min(...scores)) / width)));
  const top = Math.max(high, Math.min(Math.max(...scores), BEYOND * (threshold ?? high)));
  const number = Math.min(80, before + Math.max(counts.length, Math.ceil((top - low) / width)) + 1);
  const start = low - before * width;
  const now = new Array(number).fill(0);
  for (const score of scores) {
    const bin = Math.min(number - 1, Math.max(0, Math.floor((score - start) / width)));
    now[bin] += 1 / scores.length;
  }
  const total = counts.reduce((sum, count) => sum + count, 0);
  const then = new Array(number).fill(0);
  counts.forEach((count, i) => { then[before + i] = count / total; });
  return { low: start, width, now, then };
}

function bars(context, bins, box, step, y, threshold) {
  bins.now.forEach((share, i) => {
    if (!share) return;
    const middle = bins.low + (i + 0.5) * bins.width;
    context.fillStyle = colour(threshold !== null && middle > threshold ? "bad" : "good");
    context.globalAlpha = 0.7;
    context.fillRect(box.left + i * step + 0.5, y(share), Math.max(1, step - 1), box.bottom - y(share));
    context.globalAlpha = 1;
  });
}

function outline(context, shares, box, step, y) {
  const last = shares.findLastIndex((share) => share > 0);
  const first = shares.findIndex((share) => share > 0);
  context.strokeStyle = colour("calm");
  context.lineWidth = 2;
  context.beginPath();
  context.moveTo(box.left + first * step, box.bottom);
  for (let i = first; i <= last; i += 1) {
    context.lineTo(box.left + i * step, y(shares[i]));
    context.lineTo(box.left + (i + 1) * step, y(shares[i]));
  }
  context.lineTo(box.left + (last + 1) * step, box.bottom);
  context.stroke();
}

function baseline(context, bins, box, size, threshold, x) {
  context.strokeStyle = colour("line");
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(box.left, box.bottom);
  context.lineTo(box.right, box.bottom);
  context.stroke();
  context.fillStyle = colour("soft");
  context.textBaseline = "top";
  const y = box.bottom + 0.45 * size;
  const beyond = Math.round(100 * bins.now.at(-1));
  const high = bins.low + bins.now.length * bins.width;
  context.textAlign = "left";
  context.fillText(number(bins.low), box.left, y);
  context.textAlign = "right";
  context.fillText(`${number(high)} and more${beyond ? `: ${beyond} %` : ""}`, box.right, y);
  if (threshold === null || threshold > high) return;
  context.strokeStyle = colour("ink");
  context.lineWidth = 1.5;
  context.setLineDash([6, 5]);
  context.beginPath();
  context.moveTo(x(threshold), box.top);
  context.lineTo(x(threshold), box.bottom);
  context.stroke();
  context.setLineDash([]);
  const right = x(threshold) < (box.left + box.right) / 2;
  context.textAlign = right ? "left" : "right";
  context.fillText(`threshold ${number(threshold)}`, x(threshold) + (right ? 0.5 : -0.5) * size, box.top);
}

function told(bins, scores, threshold) {
  const above = threshold === null ? null : scores.filter((score) => score > threshold).length;
  const now = `${scores.length} newest scores${above === null ? "" : `, ${above} above the threshold`}`;
  return `Distribution of the ${now}; calibration's scores lie from ${number(bins.low)} on.`;
}
