// How much of the heat map shows, on all pictures, and remembered.
export function opacity() {
  const slider = document.getElementById("opacity");
  if (!slider) return;
  const apply = () => {
    document.documentElement.style.setProperty("--heat", String(slider.value / 100));
    slider.setAttribute("aria-valuetext", `${slider.value} percent`);
    document.getElementById("opacity-text").textContent = `${slider.value} %`;
  };
  try { slider.value = localStorage.getItem("heat") ?? slider.value; } catch { /* a browser that keeps nothing */ }
  slider.addEventListener("input", () => {
    apply();
    try { localStorage.setItem("heat", slider.value); } catch { /* likewise */ }
  });
  apply();
}
