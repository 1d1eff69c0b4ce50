// A small chart: the newest scores in thresholds, on a logarithmic axis.
import { colour, prepare } from "./drawing.js";

const KEPT = 60;

export function drawSpark(canvas, ratios) {
  const { context, width, height } = prepare(canvas);
  const shown = ratios.filter((ratio) => ratio !== null && ratio > 0);
  const high = Math.log(Math.max(2, ...shown) * 1.1);
  const low = Math.log(Math.min(0.5, ...shown) * 0.9);
  const y = (ratio) => height - ((Math.log(ratio) - low) / (high - low)) * height;
  context.strokeStyle = colour("line");
  context.lineWidth = 1;
  if (!shown.length) {
    line(context, width, height / 2);
    return;
  }
  context.strokeStyle = colour("soft");
  context.setLineDash([4, 4]);
  line(context, width, y(1));
  context.setLineDash([]);
  const step = width / KEPT;
  const radius = Math.min(4, Math.max(1.8, step * 0.3));
  ratios.forEach((ratio, i) => {
    if (ratio === null || ratio <= 0) return;
    context.fillStyle = colour(ratio > 1 ? "bad" : "good");
    context.beginPath();
    context.arc(width - (ratios.length - i - 0.5) * step, y(ratio), ratio > 1 ? radius * 1.35 : radius, 0, 2 * Math.PI);
    context.fill();
  });
}

function line(context, width, y) {
  context.beginPath();
  context.moveTo(0, y);
  context.lineTo(width, y);
  context.stroke();
}
