// The Teach page: actions are recorded or uploaded, cut, learnt, tried at once. See demo/teach_api.py.

import { $, notify, sentence } from "/page/common.js";
import { chosen, running, seenAt } from "/page/camera.js";
import "/page/corrections.js";                              // the names of labels
import { connect, on, save, send } from "/page/feed.js";
import "/page/overlays.js";
import { mountPicker } from "/page/picker.js";
import "/page/scores.js";
import { isSeen, onSeen } from "/page/shell.js";
import { mountStage, showOverPicture, showState } from "/page/stage.js";

const ROUND_MS = 500;
const LATE_S = 2, FIRST_S = 20;                            // the next picture, the first one are waited for, at most
const CHECKS = 5;                                          // recordings that are named
const make = (kind, ...inside) => {
  const made = document.createElement(kind);
  made.append(...inside);
  return made;
};
const pause = seconds => new Promise(done => setTimeout(done, 1000 * seconds));
let state = null;

async function until(condition, patience) {                 // seconds, at most
  for (let waited = 0; !condition() && waited < patience; waited += 0.05) await pause(0.05);
}

async function ask(path, body) {                            // what the server answers; its state, as a rule
  const raw = body instanceof Blob;
  const answer = await fetch(`/teach/${path}`, body === undefined ? {} : {
    method: "POST", body: raw ? body : JSON.stringify(body), headers: raw ? {} : { "Content-Type": "application/json" } });
  const message = await answer.json();
  if (message.error) notify(sentence(message.error));
  if (message.clips) show(message);
  return !message.error;
}

// ---- recordings ----

async function record() {
  const label = $("name").value.trim(), seconds = Number($("seconds").value);
  if (!label) {
    notify("Name the action first.");
    $("name").focus();
    return;
  }
  if (!running()) {
    notify("There is no camera to record yet. Press Use my camera, then record.");
    return;
  }
  notify("");
  $("record").disabled = true;
  for (let left = Number($("countdown").value); left > 0; left--) {
    showOverPicture(`${label} in ${left} …`);
    await pause(1);
  }
  showOverPicture(`${label}: waiting for the camera …`);
  await until(() => seenAt() !== null, FIRST_S);
  showOverPicture(`${label}: now`);
  const from = seenAt(), to = from + seconds;
  if (from !== null) {
    for (let at = null; seenAt() < to && seenAt() !== at;) {  // by the times of the pictures, however slowly they come
      at = seenAt();
      await until(() => seenAt() !== at, LATE_S);
    }
  }
  showOverPicture("");
  $("record").disabled = false;
  if (from === null) notify("No picture came from the camera. Choose another one, then record again.");
  else save(label, from, to, $("place").value.trim());
}

async function upload() {
  const label = $("name").value.trim(), files = [...$("files").files];
  $("files").value = "";
  if (!label) {
    notify("Name the action first, then choose the videos.");
    return;
  }
  notify("");
  for (const [i, file] of files.entries()) {
    $("learning").textContent = `uploading ${i + 1} of ${files.length}: ${file.name}`;
    if (!await ask(`clips?${new URLSearchParams({ label, place: $("place").value.trim() })}`, file)) break;
  }
}

function card(clip) {
  const video = make("video"), which = { label: clip.label, number: clip.number };
  Object.assign(video, { src: `/teach/clips/${encodeURIComponent(clip.label)}/${clip.number}.mp4`, muted: true, preload: "metadata" });
  video.setAttribute("aria-label", `recording ${clip.number} of ${clip.label}`);
  const ends = ["from", "to"].map((name, i) => {
    const slider = Object.assign(make("input"), { type: "range", min: 0, max: clip.whole_s, step: 0.05 });
    slider.value = i ? clip.whole_s : 0;
    slider.setAttribute("aria-label", `${name}, of recording ${clip.number} of ${clip.label}`);
    slider.oninput = () => { video.pause(); video.currentTime = Number(slider.value); };
    return slider;
  });
  const play = Object.assign(make("button", "Play"), { type: "button" });
  play.onclick = () => {                                    // what the sliders leave of it
    video.currentTime = Number(ends[0].value);
    video.ontimeupdate = () => video.currentTime >= Number(ends[1].value) && video.pause();
    video.play();
  };
  const cut = Object.assign(make("button", "Cut"), { type: "button" });
  cut.onclick = () => ask("cut", { ...which, from: Number(ends[0].value), to: Number(ends[1].value) });
  const remove = Object.assign(make("button", "Delete"), { type: "button" });
  remove.onclick = () => confirm(`Delete recording ${clip.number} of ${clip.label}?`) && ask("remove", which);
  const length = clip.seconds < clip.whole_s - 0.1 ? `${clip.seconds.toFixed(1)} of ${clip.whole_s.toFixed(1)} s` : `${clip.whole_s.toFixed(1)} s`;
  const made = make("div", video, `${clip.number}: ${length}${clip.place && `, ${clip.place}`} `, ...ends, play, " ", cut, " ", remove);
  made.className = "clip";
  return made;
}

// ---- what there is ----

function show(message) {
  const changed = JSON.stringify(state?.clips) !== JSON.stringify(message.clips);
  const learnt = state && message.versions !== state.versions;
  if (state === null || changed) {
    const labels = [...new Set(message.clips.map(clip => clip.label))];
    $("clips").replaceChildren(...labels.map(label => {
      const own = message.clips.filter(clip => clip.label === label);
      const cards = make("div", ...own.map(card));
      cards.className = "clips";
      return make("section", make("h2", `${label} (${own.length})`), cards);
    }));
    $("places").replaceChildren(...new Set(message.clips.map(clip => clip.place).filter(Boolean)).values().map(place => new Option(place)));
  }
  if (state === null) {
    $("from").replaceChildren(...message.starts.map((name, i) => new Option(
      i ? `strokes in the air, besides what ${name} knows` : "any actions, those recorded here only", name)));
    $("look-at-hands").checked = message.hands;
    $("look-at-hands").disabled = !message.hands;
    $("no-hands").hidden = message.hands;
  }
  if (state?.report !== message.report) report(message.report === null ? null : JSON.parse(message.report));
  state = message;
  $("learn").disabled = message.busy || !message.clips.some(clip => clip.label !== "nothing");
  $("undo").disabled = message.busy || !message.versions;
  $("download").hidden = !message.versions;
  $("learning").textContent = message.error || (message.busy ? `Learning: ${message.status} …` : learnt ? (message.versions > state.versions ? "Done. The camera above is recognised by the new model: try it." : "Undone: the model before it is in use again.") : $("learning").textContent.replace(/^(Learning|uploading).*/, ""));
  $("learning").className = message.error ? "alarm" : "";
}

function report(found) {
  const rows = [];
  for (const label of Object.keys(found?.recordings ?? {})) {
    const counts = found.confusion.filter(([of]) => of === label), asked = counts.reduce((sum, [, , n]) => sum + n, 0);
    const right = counts.find(([, answer]) => answer === label)?.[2] ?? 0;
    const wrong = counts.filter(([, answer]) => answer !== label).map(([, answer, n]) => `${answer} (${n})`).join(", ");
    rows.push(make("tr", make("td", label), make("td", `${found.recordings[label]}`), make("td", asked ? `${right} of ${asked}` : "–"), make("td", wrong)));
  }
  if (!rows.length) {
    $("report").replaceChildren();
    return;
  }
  const head = make("tr", ...["action", "recordings", "right when left out", "else taken for"].map(text => make("th", text)));
  const percent = share => `${Math.round(100 * share)} %`;
  const notes = [
    ...(found.left_out_standard_error == null ? [] : [`Right when left out: ${percent(found.left_out_accuracy)}, give or take ${percent(found.left_out_standard_error)}.`]),
    ...(found.hands ? ["It looks at hands."] : []),
    ...found.mistakes.slice(0, CHECKS).map(one => `Look at ${one.recording.replace(/\.mp4$/, "")}: it looks like ${one.answer} (${one.probability.toFixed(2)})${one.gain > 0 ? "; the others are learnt better without it" : ""}.`),
    ...found.alike.map(([a, b, share]) => `Too alike: ${a} and ${b}; ${percent(share)} are taken for one another.`),
    ...found.skipped.map(([path, why]) => `Left out ${path}: ${why}.`), ...found.warnings.map(text => `Note: ${text}.`),
    ...(found.advice ?? []).map(text => `Would help: ${text}.`)];
  const table = make("table", make("thead", head), make("tbody", ...rows));
  $("report").replaceChildren(make("h2", "What was learnt"), table, ...notes.map(text => make("p", text)));
}

mountStage($("stage"));
mountPicker($("controls"));
showState("connecting");
$("record").onclick = record;
$("files").onchange = upload;
$("learn").onclick = () => { notify(""); ask("learn", { start: $("from").value, hands: $("look-at-hands").checked }); };
$("from").onchange = () => { $("hands-label").hidden = $("from").selectedIndex > 0; };
$("undo").onclick = () => ask("undo", {});
on("saved", ({ label, number }) => {
  notify(`Kept: recording ${number} of ${label}.`, true);
  ask("state");
});
on("error", ({ error, of }) => { if (!of) notify(sentence(error)); });
on("state", ({ kind }) => { if (kind === "running") $("record").disabled = chosen()?.startsWith("service:") ?? true; });
on("hello", () => send({ hidden: !isSeen() }));
onSeen(() => send({ hidden: !isSeen() }));
connect();
const round = async () => {
  if (!document.hidden) await ask("state").catch(() => {});  // the server is away: the picture's place says so
  setTimeout(round, ROUND_MS);
};
round();
