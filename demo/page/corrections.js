// A wrong recognition becomes a recording of what it was, to be learnt on the page Teach.

import { make } from "/page/common.js";
import { on, save } from "/page/feed.js";

const AROUND_S = 0.5;                                       // an event, that is kept with it

const labels = make("datalist", { id: "labels" });
const dialog = make("dialog", { id: "was" });
dialog.setAttribute("aria-labelledby", "was-title");
dialog.innerHTML = `<form method="dialog">
  <h2 id="was-title">What was it?</h2>
  <label class="field">Action <input id="was-label" list="labels" maxlength="40" autocomplete="off" dir="auto"></label>
  <p class="hint">The moment is kept as a recording of it, to be learnt on the page Teach.</p>
  <div class="row"><button value="keep" class="primary">Keep</button> <button value="">Cancel</button></div>
</form>`;
document.body.append(labels, dialog);

export function correct(event) {
  const input = dialog.querySelector("input");
  input.value = "";
  dialog.onclose = () => {
    const label = input.value.trim();
    if (dialog.returnValue === "keep" && label) save(label, event.started_at - AROUND_S, event.ended_at + AROUND_S);
  };
  dialog.returnValue = "";
  dialog.showModal();
}

on("hello", hello => {
  const known = hello.labels.filter(label => label !== hello.background && label !== "nothing");
  labels.replaceChildren(...["nothing", ...known].map(label => new Option(label)));
});
