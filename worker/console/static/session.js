// Logging in and out. By a script, since a form of a page that sends no referrer says no origin either, and where there
// is no TLS the console has nothing else to tell its own pages by.
for (const form of document.querySelectorAll('form[method="post"]')) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const problem = document.getElementById("problem");
    try {
      const answer = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)) });
      // Who is led on was let in, or out, whatever the next page is: it may be gone, or Redis away.
      if (answer.ok || answer.redirected) window.location.href = answer.url;
      else if (problem) problem.textContent = answer.status === 401 ? "This token is not known." : "The console refused it.";
    } catch {
      if (problem) problem.textContent = "The console does not answer.";
    }
    if (problem) problem.hidden = !problem.textContent;
  });
}
