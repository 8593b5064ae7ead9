// The Live page: opens on the simulated camera, running.

import { $, notify, sentence } from "/page/common.js";
import { SIMULATION, chosen, running, start } from "/page/camera.js";
import { connect, on, send } from "/page/feed.js";
import { listService, mountPicker } from "/page/picker.js";
import "/page/overlays.js";
import "/page/known.js";
import "/page/scores.js";
import "/page/track.js";
import "/page/sensitivity.js";
import "/page/details.js";
import { isSeen, onSeen } from "/page/shell.js";
import { mountStage, showState } from "/page/stage.js";

const HINTED = "gatestream: a gesture was recognised";

mountStage($("stage"));
mountPicker($("controls"));
showState("connecting");

on("error", ({ error, of }) => { if (!of) notify(sentence(error)); });
on("saved", ({ label, number }) => notify(`Kept: recording ${number} of ${label}. Teach learns it.`, true));
onSeen(() => send({ hidden: !isSeen() }));                  // no pictures for nobody

let tried = false;
const wanted = new URLSearchParams(location.search).get("service"), known = listService().catch(() => []);
on("hello", async () => {
  send({ hidden: !isSeen() });
  if (chosen() !== null || tried) return;
  tried = true;
  start(wanted !== null && (await known).includes(wanted) ? `service:${wanted}` : SIMULATION);
});
// The first-time hint, where the model knows circles, until the first event of a real camera.
let knowsCircles = false;
function hint() {
  const real = running() && !chosen()?.startsWith("sim:");
  $("first-hint").hidden = !real || !knowsCircles || localStorage.getItem(HINTED) !== null;
}
on("hello", ({ labels }) => { knowsCircles = labels.some(label => /circle/i.test(label)); });
on("state", hint);
on("event", event => {
  if (event.open || event.label === "unknown" || chosen()?.startsWith("sim:")) return;
  localStorage.setItem(HINTED, "yes");
  hint();
});

connect();
