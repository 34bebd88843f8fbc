// Training: three choices, what they will cost, and how it goes.

import { get, post, settled } from "./api.js";
import { curves } from "./curve.js";
import { duration, h, megabytes, redraw, segmented, toast, told } from "./dom.js";
import { store } from "./store.js";
import { pause } from "./visit.js";

const TIMES = [
  { value: "quick", text: "Quick", note: "60 steps: a first look" },
  { value: "usual", text: "Usual", note: "400 to 800 steps" },
  { value: "long", text: "Long", note: "2,400 steps: the last points" },
];
const MEMORIES = [
  { value: "", text: "No limit" },
  { value: "8GB", text: "8 GB" },
  { value: "4GB", text: "4 GB" },
  { value: "2GB", text: "2 GB" },
];
const MODELS = [
  { value: "lite", text: "Lite", note: "for any computer" },
  { value: "auto", text: "Best here", note: "of the weights on this computer" },
  { value: "unet", text: "U-Net", note: "from scratch" },
];
const [CHOOSING, FOLLOWING] = [400, 1000]; // milliseconds: until a choice counts as made, between two looks at a run
const choice = { time: "usual", memory: "", model: "lite", hold_back: true };
const WORDS = { preparing: "Preparing images", training: "Training", testing: "Testing", done: "Finished", interrupted: "Stopped" };

export async function trainView(visit, chosen) {
  const { labelled, test_is_fixed: testIsFixed } = await visit.still(get("/api/runs"));
  const element = h("div", { class: "train-view" });
  const expected = h("p", { class: "expected", role: "status" });
  const begin = h("button", { type: "button", class: "main", onclick: () => start() }, "Train");
  const place = h("div", { class: "run-place" });
  const look = h("figure", { class: "look", hidden: true });
  let shown = chosen ?? null;
  let drawn = null;

  const set = (name) => (value) => {
    choice[name] = value;
    estimate();
  };
  const form = h(
    "section",
    { class: "panel-box" },
    h("h1", {}, "Train"),
    h("p", { class: "soft" }, labelled.length ? `On the ${labelled.length} finished ${labelled.length === 1 ? "case" : "cases"} of this folder, on this computer.` : "No case is finished yet: outline one and finish it, then come back."),
    segmented("time", "Time", TIMES, choice.time, set("time")),
    segmented("memory", "Memory it may take", MEMORIES, choice.memory, set("memory")),
    segmented("model", "Model", MODELS, choice.model, set("model")),
    testIsFixed
      ? h("p", { class: "note" }, "The data say which cases are kept for the test: these are not trained on.")
      : labelled.length >= 5
      ? h("label", { class: "check" }, h("input", { type: "checkbox", checked: choice.hold_back, onchange: (event) => (choice.hold_back = event.target.checked) }), "Keep a fifth of the cases for an honest test")
      : h("p", { class: "note" }, "With fewer than five finished cases all are trained on: the Dice shown is that of the training images and says little about others."),
    expected,
    begin,
  );
  begin.disabled = !labelled.length;
  element.append(form, place);

  async function estimate() {
    const turn = visit.newest("estimate");
    expected.textContent = "Estimating the memory…";
    await turn.still(pause(CHOOSING));
    const found = await settled(turn, "/api/memory", choice);
    const finest = found.finest ? `, up to ${megabytes(found.finest)} where structures are fine` : "";
    if (found.state === "done") expected.replaceChildren("Expected memory: ", h("strong", {}, megabytes(found.bytes)), ` at the peak of a step${finest}.`);
    else if (found.state === "failed") expected.textContent = found.message;
  }

  async function start() {
    begin.disabled = true;
    const begun = await visit.still(told(post("/api/runs", choice)));
    if (begun) {
      shown = begun.run;
      toast(store.active.some(({ kind }) => kind === "train") ? "The training waits for the one under way." : "The training has begun.");
      await store.refresh();
      await told(follow());
    }
    begin.disabled = false;
  }

  async function follow() {
    const { runs } = await visit.still(get("/api/runs"));
    const queued = store.active.find(({ kind, run }) => kind === "train" && !runs.some(({ id }) => id === run));
    const run = runs.find(({ id }) => id === shown) ?? (queued ? null : runs[0]);
    if (!run && !queued) {
      place.replaceChildren(h("div", { class: "empty" }, h("h2", {}, "No run yet"), h("p", {}, "Its curves appear here as soon as you train.")));
      return;
    }
    drawn = run?.id ?? null;
    if (run) watch(run).catch(() => {});
    redraw(place, run ? describe(run, runs) : waiting(queued));
  }

  /** While a run trains: what its last weights make of a case that is not trained on. */
  async function watch(run) {
    if (run.state !== "training" || !run.dice.length) {
      look.hidden = run.state !== "training" && run.state !== "testing";
      return;
    }
    if (look.dataset.run !== run.id) look.hidden = true; // the picture is of another run
    const { case: name, step } = await visit.still(post(`/api/runs/${run.id}/preview`));
    if (!step || drawn !== run.id) return;
    const address = `/api/runs/${run.id}/picture?step=${step}`;
    if (look.dataset.address === address) return;
    Object.assign(look.dataset, { address, run: run.id });
    look.replaceChildren(h("img", { src: address, alt: `Prediction for ${name} after step ${step}` }), h("figcaption", {}, `${name} after step ${step}`));
    look.hidden = false;
  }

  function waiting(job) {
    const text = job.state === "waiting" ? "Waiting for the job under way" : "Looking through the cases";
    return [h("section", { class: "panel-box" }, h("h2", {}, text), h("div", { class: "meter unknown" }, h("span", {})), stopButton(job))];
  }

  async function ask(path) {
    await told(post(path));
    await store.refresh();
  }

  function stopButton(job) {
    return h("button", { type: "button", "data-act": "stop", disabled: job.stopping, onclick: () => ask(`/api/jobs/${job.number}/stop`) }, job.stopping ? "Stopping after this step…" : "Stop");
  }

  function describe(run, runs) {
    const job = store.active.find((each) => each.kind === "train" && each.run === run.id);
    const orphan = store.state.elsewhere?.run === run.id;
    const share = run.steps ? run.step / run.steps : 0;
    const bar = h("div", { class: "meter", role: "progressbar", "aria-label": "Steps", "aria-valuemin": "0", "aria-valuemax": String(run.steps), "aria-valuenow": String(run.step) }, h("span", {}));
    bar.firstChild.style.width = `${100 * share}%`;
    const left = run.state === "training" && run.seconds_left !== null ? `about ${duration(run.seconds_left)} left` : "";
    const facts = [
      ["Step", `${run.step} of ${run.steps}`],
      ["Loss", run.loss.length ? run.loss.at(-1)[1].toFixed(3) : "–"],
      [`Dice on ${run.followed}`, run.dice.length ? run.dice.at(-1)[1].toFixed(3) : "–"],
      ["Memory", `${run.peak_bytes ? megabytes(run.peak_bytes) : "–"}${run.expected_bytes ? ` of ${megabytes(run.expected_bytes)} expected` : ""}`],
    ];
    if (run.result) facts.push(["Dice in the test", run.result.dice_mean === null ? "not tested: all cases were trained on" : `${run.result.dice_mean.toFixed(3)} on ${run.result.tested_on} held-out`]);
    const actions = [];
    if (run.state === "done") {
      actions.push(h("a", { class: "button main", "data-act": "results", href: `#results/${run.id}` }, "See results"));
      actions.push(h("a", { class: "button", "data-act": "report", href: `/api/runs/${run.id}/report`, target: "_blank", rel: "noopener" }, "Report"));
    } else if (job) actions.push(stopButton(job));
    else if (orphan) actions.push(h("button", { type: "button", "data-act": "stop", onclick: () => ask("/api/jobs/0/stop") }, "Stop"));
    else if (run.state === "interrupted")
      actions.push(h("button", { type: "button", class: "main", "data-act": "resume", onclick: () => ask(`/api/runs/${run.id}/resume`) }, "Go on"));
    return [
      h(
        "section",
        { class: "panel-box", "data-state": run.state },
        h("div", { class: "head" }, h("h2", {}, `${run.name}: ${WORDS[run.state]}`), h("span", { class: "soft" }, left)),
        bar,
        h("div", { class: "live" }, curves(run), look),
        h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
        h("div", { class: "row" }, actions),
      ),
      runs.length > 1
        ? h("section", { class: "panel-box" }, h("h2", {}, "All runs"), h("ul", { class: "run-list" }, runs.map((each) =>
            h("li", {}, h("button", { type: "button", "aria-pressed": String(each.id === run.id), onclick: () => ((shown = each.id), told(follow())) },
              h("span", {}, each.name), h("span", { class: "soft" }, each.result?.dice_mean != null ? `Dice ${each.result.dice_mean.toFixed(3)}` : WORDS[each.state]))))))
        : null,
    ];
  }

  (async () => {
    for (;;) {
      await follow().catch(() => {});
      await visit.still(pause(FOLLOWING));
    }
  })();
  if (labelled.length) estimate();
  return { element, jobsChanged: () => follow().catch(() => {}) };
}
