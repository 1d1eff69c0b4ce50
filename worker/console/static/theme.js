// Runs before the first paint, so that no page flashes in the other theme. "auto" is what the system says.
(() => {
  const THEMES = ["auto", "light", "dark"];
  const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const known = (theme) => (THEMES.includes(theme) ? theme : "auto");
  const apply = (theme) => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.title = `Theme: ${theme}`;
    if (button) button.setAttribute("aria-label", `Theme: ${theme}`);
    window.dispatchEvent(new Event("themechange"));
  };
  let theme = known(stored());
  apply(theme);
  document.addEventListener("DOMContentLoaded", () => {
    apply(theme);
    document.getElementById("theme").addEventListener("click", () => {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      try { localStorage.setItem("theme", theme); } catch { /* a browser that keeps nothing */ }
      apply(theme);
    });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => window.dispatchEvent(new Event("themechange")));
})();
