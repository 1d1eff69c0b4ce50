// Tries again where a page says that it will.
const message = document.getElementById("message");
document.getElementById("live").hidden = true;
if (message && "retry" in message.dataset) {
  setInterval(async () => {
    try {
      if ((await fetch("/readyz")).ok) window.location.reload();
    } catch { /* the console itself is away */ }
  }, 2000);
}
