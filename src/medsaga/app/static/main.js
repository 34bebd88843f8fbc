// The frame of the page: which view is shown, the keys, and what goes on in the background.

import { casesView } from "./cases.js";
import { dialog, h, toast } from "./dom.js";
import { exportView } from "./export.js";
import { KEYS } from "./keys.js";
import { labelView } from "./label.js";
import { resultsView } from "./results.js";
import { openDialog, startView } from "./start.js";
import { store } from "./store.js";
import { trainView } from "./train.js";
import { pause, Visit } from "./visit.js";

const VIEWS = { cases: casesView, label: labelView, train: trainView, results: resultsView, export: exportView };
const NAMES = { cases: "Cases", label: "Label", train: "Train", results: "Results", export: "Export" };
const [ASK, ASK_WHILE_BUSY] = [1600, 800]; // milliseconds
const place = document.getElementById("view");
const pages = new Visit();
let view = null;
let changed = new Set(); // what has changed since the newest view was asked for
let lost = false;
let told = 0;

async function show() {
  const visit = pages.newest("view", location.hash);
  changed = new Set();
  const [name, ...rest] = location.hash.slice(1).split("/");
  const chosen = store.project ? (name in VIEWS ? name : "cases") : "start";
  for (const link of document.querySelectorAll("#nav a"))
    if (link.hash === `#${chosen}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  document.getElementById("nav").hidden = document.getElementById("other").hidden = !store.project;
  document.getElementById("project").textContent = store.project?.name ?? "";
  document.title = store.project ? `${NAMES[chosen]} · medsaga` : "medsaga";
  try {
    if (chosen === "label") await visit.still(store.learnPredictions());
    view = await visit.still(chosen === "start" ? startView() : VIEWS[chosen](visit, ...rest));
  } catch (error) {
    view = { element: h("div", { class: "empty" }, h("h1", {}, "This could not be shown"), h("p", {}, error.message)) };
  }
  place.dataset.view = chosen;
  place.replaceChildren(view.element);
  // The view may have asked before it changed, and been told while the one before it was shown.
  for (const name of changed) HEARD[name]();
}

const HEARD = {
  labels: () => view?.update?.(),
  revision: () => view?.revised?.(),
  jobs: () => (view?.isStale ? show() : view?.jobsChanged?.()),
};
for (const name of Object.keys(HEARD))
  store.addEventListener(name, () => {
    changed.add(name);
    HEARD[name]();
  });

function activity() {
  const words = { train: "Training", predict: "Segmenting", suggest: "Looking for cases", memory: "Estimating memory" };
  const running = store.active.find(({ state }) => state === "running") ?? store.active[0] ?? store.state.elsewhere;
  const waiting = store.active.filter(({ state, kind }) => state === "waiting" && kind !== "memory").length;
  const element = document.getElementById("activity");
  const text = running ? `${words[running.kind] ?? "Working"}${waiting && running.state === "running" ? `, ${waiting} waiting` : ""}` : "";
  if (element.textContent !== text) element.textContent = text;
  element.classList.toggle("on", Boolean(running));
}

store.addEventListener("lost", (event) => {
  if (!lost) toast(event.detail.message, "error");
  lost = true;
});
store.addEventListener("state", () => {
  if (lost) toast("The server answers again.");
  lost = false;
  activity();
  for (const { number, text } of (store.state.notices ?? []).filter(({ number }) => number > told)) {
    toast(text);
    told = number;
  }
});
store.addEventListener("project", () => {
  reported.clear(); // numbers of jobs begin anew
  location.hash = "#cases";
  show();
});
store.addEventListener("jobs", () => {
  const failed = (store.state.jobs ?? []).filter(({ state }) => state === "failed");
  for (const job of failed.filter(({ number }) => !reported.has(number))) {
    reported.add(job.number);
    if (job.kind !== "memory") toast(job.message || "A command failed.", "error");
  }
});
const reported = new Set();

document.getElementById("help").addEventListener("click", help);
document.getElementById("other").addEventListener("click", openDialog);

function help() {
  dialog(
    "Keys",
    h(
      "div",
      { class: "keys" },
      KEYS.map(([heading, keys]) =>
        h("section", {}, h("h3", {}, heading), h("dl", {}, keys.map(([key, text]) => [h("dt", {}, key.split(" / ").map((each) => h("kbd", {}, each))), h("dd", {}, text)]))),
      ),
    ),
  );
}

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const writes = event.target.matches?.("input[type=text], textarea, select");
  if (writes) return;
  if (event.repeat && /^(enter|[amn])$/i.test(event.key)) {
    event.preventDefault(); // one press, one case
    return;
  }
  if (event.key === "?") {
    help();
    event.preventDefault();
    return;
  }
  if (event.target.matches?.("input") && (event.key.startsWith("Arrow") || event.key === " " || event.key.startsWith("Page"))) return;
  if (view?.key?.(event)) event.preventDefault();
});

addEventListener("hashchange", show);
await store.refresh();
show(); // not awaited: it never settles where the user goes elsewhere before the view is there

for (;;) {
  await pause(store.active.length ? ASK_WHILE_BUSY : ASK);
  if (!document.hidden) await store.refresh();
}
