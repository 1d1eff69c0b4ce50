// What charts share: a canvas at the screen's own resolution, and colours of the theme.
export function prepare(canvas) {
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

let colours = {};
export function colour(name) {
  if (!(name in colours)) {
    const probe = document.createElement("i"); // a variable of two themes has no value until it is used
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    colours[name] = getComputedStyle(probe).color;
    probe.remove();
  }
  return colours[name];
}

export function fontOf(size = 0.75) {
  const root = parseFloat(getComputedStyle(document.documentElement).fontSize);
  return { font: `${size * root}px system-ui, sans-serif`, size: size * root };
}

// Draws once a frame at most, when it was asked to, and again whenever size or theme changes.
export function drawer(canvas, draw) {
  let asked = false;
  const ask = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; if (canvas.clientWidth) draw(); });
  };
  new ResizeObserver(ask).observe(canvas);
  window.addEventListener("themechange", () => { colours = {}; ask(); });
  return ask;
}
