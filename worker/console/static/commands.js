// The buttons: each asks once, sends, and shows what the keeper said.
const ask = document.getElementById("ask");
const value = document.getElementById("ask-value");
const answer = document.getElementById("answer");
let models = [];
let button = null;

export function knownModels(found) {
  models = found;
}

function show(text, ok) {
  answer.hidden = false;
  answer.textContent = text;
  if (ok === undefined) delete answer.dataset.ok;
  else answer.dataset.ok = String(ok);
}

async function send(pressed, args) {
  const name = pressed.dataset.command;
  const label = pressed.dataset.confirm;
  show(`${label}: waiting for the keeper's answer…`);
  pressed.disabled = true;
  try {
    const response = await fetch(`/lines/${ask.dataset.line}/commands`, {
      method: "POST",
      headers: { "content-type": "application/json", "x-csrf-token": document.querySelector('meta[name="csrf"]').content },
      body: JSON.stringify({ name, args }),
    });
    const reply = await response.json();
    const who = reply.by ? `, ${reply.by} at ${new Date().toLocaleTimeString()}` : "";
    const prefix = reply.ok ? "" : response.ok ? "Refused: " : "Not done: ";
    show(`${prefix}${reply.text} (${name}${who})`, reply.ok);
  } catch {
    show(`${label}: the console did not answer. Whether it was sent shows in what the line was told.`, false);
  } finally {
    pressed.disabled = false;
    if (!document.activeElement || document.activeElement === document.body) pressed.focus();
  }
}

function open(pressed) {
  button = pressed;
  const { title, ask: text, confirm, field, known } = pressed.dataset;
  document.getElementById("ask-title").textContent = title;
  document.getElementById("ask-text").textContent = text;
  document.getElementById("ask-confirm").textContent = confirm;
  document.getElementById("ask-field").hidden = !field;
  document.getElementById("ask-label").textContent = field ?? "";
  value.value = "";
  value.required = Boolean(field) && !("optional" in pressed.dataset);
  document.getElementById("ask-known").replaceChildren(...(known ? models : []).map((model) => new Option(model)));
  ask.showModal();
  (field ? value : document.getElementById("ask-confirm")).focus();
}

export function commands() {
  for (const each of document.querySelectorAll("[data-command]")) each.addEventListener("click", () => open(each));
  // Enter in the field confirms; a form's first button is what it would press, and that one cancels.
  value.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    document.getElementById("ask-confirm").click();
  });
  // Not at the dialog's "close", which comes later than it closes: the next question may be open by then.
  ask.addEventListener("submit", (event) => {
    if (event.submitter.id !== "ask-confirm") return;
    const typed = value.value.trim();
    send(button, button.dataset.args ? JSON.parse(button.dataset.args) : typed ? [typed] : []);
  });
}

// Keys that stand for buttons and links, where nothing else takes them.
export function keys(bound) {
  document.addEventListener("keydown", (event) => {
    if (ask.open || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, textarea, select, pre")) return;
    const target = document.getElementById(bound[event.key] ?? "");
    if (!target || target.disabled || target.getAttribute("aria-disabled")) return;
    event.preventDefault();
    target.click();
  });
}
