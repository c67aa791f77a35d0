// Keeps the parts of a page fresh: an element with data-live is replaced by the HTML at that address, when the stream at
// data-stream says that something has changed, or else every data-seconds seconds. Pages work without this file too.
"use strict";

async function refresh(part) {
  const reply = await fetch(part.dataset.live, { headers: { Accept: "text/html" } });
  if (!reply.ok) throw new Error(String(reply.status));
  const html = await reply.text();
  const inside = part.contains(document.activeElement) && document.activeElement !== part;
  const open = part.querySelector("details[open]");
  if (!inside && !open && part.innerHTML !== html) part.innerHTML = html;
}

function say(text) {
  const status = document.getElementById("connection");
  if (status && status.textContent !== text) status.textContent = text;
}

function follow(part) {
  let last = Promise.resolve();
  const again = () => {
    last = last.then(() => refresh(part)).then(
      () => say(""),
      () => say("The controller does not answer; what you see may be old."),
    );
    return last;
  };
  if (part.dataset.stream) {
    const stream = new EventSource(part.dataset.stream);
    stream.addEventListener("changed", again);
    stream.addEventListener("ended", () => { again(); stream.close(); });
    stream.addEventListener("error", () => say("The connection to the controller is interrupted; trying again."));
    stream.addEventListener("open", () => say(""));
    return;
  }
  const seconds = Number(part.dataset.seconds || "10");
  setInterval(() => { if (!document.hidden) again(); }, seconds * 1000);
}

document.querySelectorAll("[data-live]").forEach(follow);
