// What the model makes of the cases, the least sure first: accept, mend, and train again.

import { get, post } from "./api.js";
import { dialog, h, redraw, toast, told } from "./dom.js";
import { store } from "./store.js";
import { Viewer } from "./viewer.js";
import { Volume } from "./volume.js";

const ROLES = { new: "new", test: "test", validation: "validation", train: "trained on" };

export async function resultsView(visit, chosenRun) {
  const { runs } = await visit.still(get("/api/runs"));
  const finished = runs.filter(({ state }) => state === "done" || state === "interrupted");
  const run = finished.find(({ id }) => id === chosenRun) ?? finished[0];
  if (!run) {
    const words = runs.length ? "The first run is still under way: results come here when it is over." : "Train first: results come here, the least certain case at the top.";
    const link = h("a", { class: "button main", href: "#train" }, runs.length ? "Watch the training" : "Train");
    return { element: h("div", { class: "empty" }, h("h1", {}, "No results yet"), h("p", {}, words), link), isStale: true };
  }
  const view = new Results(visit, run, finished);
  await view.load();
  return view;
}

class Results {
  constructor(visit, run, runs) {
    this.visit = visit;
    this.run = run;
    this.runs = runs;
    this.chosen = null;
    this.seen = null; // the case that the stage shows, which comes after it is chosen
    this.accepting = null; // the choice for which a prediction is being accepted
    this.choice = visit.newest("choice"); // lasts until another case is chosen
    this.wasBusy = this.isBusy;
    this.list = h("ol", { class: "result-list" });
    this.stage = h("div", { class: "stage" });
    this.head = h("div", { class: "list-head" });
    this.element = h("div", { class: "work results-work" }, h("aside", { class: "panel", "aria-label": "Cases, the least certain first" }, this.head, this.list), this.stage);
  }

  /** Whether cases are segmented by the run. */
  get isBusy() {
    return store.active.some(({ kind, run }) => kind === "predict" && run === this.run.id);
  }

  async load() {
    const { cases, since } = await this.visit.newest("list").still(get(`/api/runs/${this.run.id}/results`));
    this.cases = cases;
    this.since = since;
    if (!cases.some(({ id }) => id === this.chosen)) this.chosen = (cases.find(({ state }) => state !== "done") ?? cases[0])?.id ?? null;
    this.#drawList();
    await this.#drawStage();
  }

  revised() {
    return told(this.load());
  }

  jobsChanged() {
    if (this.isBusy !== this.wasBusy) told(this.load());
    this.wasBusy = this.isBusy;
  }

  #drawList() {
    const again = h("button", { type: "button", class: "main", disabled: !this.since.length, onclick: () => this.trainAgain(again) },
      this.since.length ? `Train again with ${this.since.length} new ${this.since.length === 1 ? "case" : "cases"}` : "Train again");
    redraw(
      this.head,
      h("h1", {}, "Results"),
      this.runs.length > 1
        ? h("label", { class: "field" }, "Run", h("select", { onchange: (event) => this.visit.go(`results/${event.target.value}`) }, this.runs.map(({ id, name }) => h("option", { value: id, selected: id === this.run.id }, name))))
        : h("p", { class: "soft" }, this.run.name),
      again,
      h("p", { class: "note" }, this.since.length ? "" : "Accept or mend predictions below; then train again with them."),
      this.isBusy ? h("p", { class: "note", role: "status" }, "Segmenting the cases…") : h("button", { type: "button", class: "quiet", onclick: () => this.predict() }, this.cases.length ? "Segment all again" : "Segment the other cases"),
      this.cases.length ? h("p", { class: "soft small" }, "The least certain first. Confidence orders cases; it promises no Dice.") : null,
    );
    redraw(
      this.list,
      this.cases.map((each) =>
        h(
          "li",
          {},
          h(
            "button",
            { type: "button", class: "result", "data-act": each.id, "aria-pressed": String(each.id === this.chosen), onclick: () => this.choose(each.id) },
            h("img", { src: `/api/cases/${each.id}/thumbnail?run=${this.run.id}&v=${each.picture}`, alt: "", loading: "lazy" }),
            h("span", { class: "result-text" },
              h("span", {}, each.name),
              h("span", { class: "soft" }, each.confidence === null ? "" : `confidence ${each.confidence.toFixed(2)}`, each.dice === null ? "" : ` · Dice ${each.dice.toFixed(2)}`),
              h("span", {}, h("span", { class: `badge ${each.role === "new" ? each.state : "hint"}` }, each.role === "new" ? { none: "to review", draft: "being mended", done: "accepted" }[each.state] : ROLES[each.role])))),
        ),
      ),
    );
  }

  async #drawStage() {
    const turn = this.visit.newest("stage");
    const about = this.cases.find(({ id }) => id === this.chosen);
    if (this.seen !== this.chosen) this.#see(null);
    if (!about) {
      this.stage.replaceChildren(h("div", { class: "empty" }, h("h2", {}, "No predictions of this run yet"), h("p", {}, "They come by themselves after a training, case by case.")));
      return;
    }
    const volume = await turn.still(Volume.open(about.id));
    const sides = [["Prediction", this.run.id]];
    if (about.state === "done") sides.unshift([about.role === "new" ? "Accepted mask" : "Truth", null]);
    const viewers = sides.map(([name, run]) => new Viewer(turn, volume, { labels: store.labels, run, sides: sides.length === 1, name: `${about.name}, ${name}` }));
    // Both go through the image together.
    for (const viewer of viewers) {
      const scroll = viewer.scroll.bind(viewer);
      viewer.scroll = (step) => (scroll(step), viewers.filter((other) => other !== viewer).forEach((other) => other.show().catch(() => {})));
    }
    this.viewers = viewers;
    const actions = about.role !== "new"
      ? h("p", { class: "note" }, about.role === "test" ? "A test case: it is never trained on, so that the score stays honest." : "")
      : h("div", { class: "row" },
          h("button", { type: "button", class: about.state === "done" ? "" : "main", title: "Accept (A)", onclick: once(() => this.accept()) }, about.state === "done" ? "Accept again" : "Accept"),
          h("button", { type: "button", title: "Mend (M)", onclick: once(() => this.mend()) }, "Mend"));
    this.stage.replaceChildren(
      h("div", { class: "case-head" }, h("h2", {}, about.name), h("span", { class: "grow" }), actions),
      h("div", { class: `beside count-${viewers.length}` }, viewers.map((viewer, n) => h("figure", {}, h("figcaption", {}, sides[n][0]), viewer.element))),
      h("div", { class: "legend" }, store.labels.slice(1).map(({ name, colour }) => h("span", { class: "swatch", colour }, name))),
    );
    this.#see(null);
    await turn.still(Promise.all(viewers.map((viewer) => viewer.show())));
    this.#see(about.id);
    if (!volume.isFlat) await this.#toLabels(turn, volume, viewers);
  }

  /** Note which case is seen, or that none is, whatever is left on the stage: no other can be accepted or mended. */
  #see(id) {
    this.seen = id;
    for (const button of this.stage.querySelectorAll(".case-head button")) button.disabled = id === null;
  }

  /** Begin where there is something to see, unless the user looks through the slices already. */
  async #toLabels(turn, volume, viewers) {
    const { plane, at } = viewers[0];
    const { slices } = volume.planes[plane];
    let [best, most] = [viewers[0].index, -1];
    for (let index = 0; index < slices; index += Math.max(1, Math.floor(slices / 16))) {
      const classes = await turn.still(volume.classes(plane, index, this.run.id));
      const count = classes.reduce((sum, each) => sum + (each > 0), 0);
      if (count > most) [best, most] = [index, count];
    }
    if (viewers[0].at !== at) return;
    volume.move(plane, [best]);
    await Promise.all(viewers.map((viewer) => viewer.show()));
  }

  choose(id) {
    this.chosen = id;
    this.choice = this.visit.newest("choice");
    this.#drawList();
    return told(this.#drawStage());
  }

  async accept() {
    const { choice, seen } = this;
    if (seen !== this.chosen) return; // it is not on the stage yet
    if (this.accepting === choice) return; // a second press is the same wish
    this.accepting = choice;
    const now = await choice.still(told(get(`/api/cases/${seen}`)));
    const isWanted = now && (!isWork(now) || (await choice.still(mayReplace())));
    const isDone = isWanted && (await choice.still(this.#begin(seen, true, now.stamp)));
    this.accepting = null;
    if (!isDone) return;
    toast("Accepted: it counts as finished and is trained on next time.");
    this.#see(null);
    const at = this.cases.findIndex(({ id }) => id === seen);
    const rest = [...this.cases.slice(at + 1), ...this.cases.slice(0, at)];
    this.chosen = rest.find(({ role, state }) => role === "new" && state !== "done")?.id ?? seen;
    await store.refresh();
    await told(this.load());
  }

  async mend() {
    const { choice, seen } = this;
    if (seen !== this.chosen) return;
    const about = this.cases.find(({ id }) => id === seen);
    // What is finished or being mended already is opened as it is.
    if (about.state !== "none" || (await choice.still(this.#begin(seen, false)))) choice.go(`label/${seen}`);
  }

  #begin(id, accept, seen) {
    return told(post(`/api/cases/${id}/begin`, { run: this.run.id, accept, seen }));
  }

  async predict() {
    await told(post(`/api/runs/${this.run.id}/predict`));
    await store.refresh();
  }

  async trainAgain(button) {
    button.disabled = true; // one training, not one for each click
    const begun = await this.visit.still(told(post(`/api/runs/${this.run.id}/again`, { time: this.run.steps || "usual" })));
    button.disabled = false;
    if (!begun) return;
    await store.refresh();
    this.visit.go(`train/${begun.run}`);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.cases.length) return false;
    const about = this.cases.find(({ id }) => id === this.chosen);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      const at = this.cases.findIndex(({ id }) => id === this.chosen) + step;
      if (this.cases[at]) this.choose(this.cases[at].id).then(() => this.list.querySelector("[aria-pressed=true]")?.focus());
      return true;
    }
    if (event.key === "PageUp" || event.key === "PageDown") {
      this.viewers?.[0]?.scroll(event.key === "PageUp" ? 1 : -1);
      return true;
    }
    // One key is soon pressed: it replaces nothing.
    if (about?.role === "new" && event.key === "a") return about.state === "none" && this.accept(), true;
    if (about?.role === "new" && event.key === "m") return this.mend(), true;
    return false;
  }
}

/** Do something at a click, and not again at the second one of a double click. */
const once = (act) => (event) => event.detail > 1 || act();

/** Whether labels are more than a prediction as it was. */
const isWork = ({ state, history, undo }) => state !== "none" && (undo || history.find(({ now }) => now)?.origin !== "prediction");

/** Ask whether a prediction may take the place of labels that somebody has made. */
function mayReplace() {
  return new Promise((resolve) => {
    const yes = h("button", { type: "button", class: "main", onclick: () => (resolve(true), box.close()) }, "Replace them");
    const words = "This case has labels that were painted, or came from a file. They stay under History.";
    const box = dialog("Replace the labels by the prediction?", h("p", {}, words), h("div", { class: "dialog-foot" }, yes));
    box.addEventListener("close", () => resolve(false));
  });
}
