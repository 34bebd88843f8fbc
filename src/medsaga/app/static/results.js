// What the model makes of the cases, the least sure first: accept, mend, and train again.

import { get, post } from "./api.js";
import { h, toast } from "./dom.js";
import { store } from "./store.js";
import { Viewer } from "./viewer.js";
import { Volume } from "./volume.js";

const ROLES = { new: "new", test: "test", validation: "validation", train: "trained on" };

export async function resultsView(chosenRun, chosenCase) {
  const { runs } = await get("/api/runs");
  const finished = runs.filter(({ state }) => state === "done" || state === "interrupted");
  const run = finished.find(({ id }) => id === chosenRun) ?? finished[0];
  if (!run) {
    const words = runs.length ? "The first run is still under way: results come here when it is over." : "Train first: results come here, the least certain case at the top.";
    const link = h("a", { class: "button main", href: "#train" }, runs.length ? "Watch the training" : "Train");
    return { element: h("div", { class: "empty" }, h("h1", {}, "No results yet"), h("p", {}, words), link), isStale: true };
  }
  const view = new Results(run, finished, chosenCase);
  await view.load();
  return view;
}

class Results {
  constructor(run, runs, chosen) {
    this.run = run;
    this.runs = runs;
    this.chosen = chosen ?? null;
    this.isOpen = true;
    this.list = h("ol", { class: "result-list" });
    this.stage = h("div", { class: "stage" });
    this.head = h("div", { class: "list-head" });
    this.element = h("div", { class: "work results-work" }, h("aside", { class: "panel", "aria-label": "Cases, the least certain first" }, this.head, this.list), this.stage);
  }

  close() {
    this.isOpen = false;
  }

  async load() {
    const { cases, since } = await get(`/api/runs/${this.run.id}/results`);
    this.cases = cases;
    this.since = since;
    if (!cases.some(({ id }) => id === this.chosen)) this.chosen = (cases.find(({ state }) => state !== "done") ?? cases[0])?.id ?? null;
    this.#drawList();
    await this.#drawStage();
  }

  revised() {
    return this.isOpen ? this.load() : null;
  }

  jobsChanged() {
    const busy = store.active.some(({ kind, run }) => kind === "predict" && run === this.run.id);
    if (busy !== this.wasBusy) this.load();
    this.wasBusy = busy;
  }

  #drawList() {
    const busy = store.active.some(({ kind, run }) => kind === "predict" && run === this.run.id);
    const again = h("button", { type: "button", class: "main", disabled: !this.since.length, onclick: () => this.trainAgain() },
      this.since.length ? `Train again with ${this.since.length} new ${this.since.length === 1 ? "case" : "cases"}` : "Train again");
    this.head.replaceChildren(
      h("h1", {}, "Results"),
      this.runs.length > 1
        ? h("label", { class: "field" }, "Run", h("select", { onchange: (event) => (location.hash = `#results/${event.target.value}`) }, this.runs.map(({ id, name }) => h("option", { value: id, selected: id === this.run.id }, name))))
        : h("p", { class: "soft" }, this.run.name),
      again,
      h("p", { class: "note" }, this.since.length ? "" : "Accept or mend predictions below; then train again with them."),
      busy ? h("p", { class: "note", role: "status" }, "Segmenting the cases…") : h("button", { type: "button", class: "quiet", onclick: () => this.predict() }, this.cases.length ? "Segment all again" : "Segment the other cases"),
      this.cases.length ? h("p", { class: "soft small" }, "The least certain first. Confidence orders cases; it promises no Dice.") : null,
    );
    this.list.replaceChildren(
      ...this.cases.map((each) =>
        h(
          "li",
          {},
          h(
            "button",
            { type: "button", class: "result", "aria-pressed": String(each.id === this.chosen), onclick: () => this.choose(each.id) },
            h("img", { src: `/api/cases/${each.id}/thumbnail?run=${this.run.id}&v=${store.project.revision}`, alt: "", loading: "lazy" }),
            h("span", { class: "result-text" },
              h("span", {}, each.name),
              h("span", { class: "soft" }, each.confidence === null ? "" : `confidence ${each.confidence.toFixed(2)}`, each.dice === null ? "" : ` · Dice ${each.dice.toFixed(2)}`),
              h("span", {}, h("span", { class: `badge ${each.role === "new" ? each.state : "hint"}` }, each.role === "new" ? { none: "to review", draft: "being mended", done: "accepted" }[each.state] : ROLES[each.role])))),
        ),
      ),
    );
  }

  async #drawStage() {
    const about = this.cases.find(({ id }) => id === this.chosen);
    if (!about) {
      this.stage.replaceChildren(h("div", { class: "empty" }, h("h2", {}, "No predictions of this run yet"), h("p", {}, "They come by themselves after a training, case by case.")));
      return;
    }
    const volume = await Volume.open(about.id);
    if (!this.isOpen) return;
    const sides = [["Prediction", this.run.id]];
    if (about.state === "done") sides.unshift([about.role === "new" ? "Accepted mask" : "Truth", null]);
    const viewers = sides.map(([name, run]) => new Viewer(volume, { labels: store.labels, run, sides: sides.length === 1, name: `${about.name}, ${name}` }));
    // Both go through the image together.
    for (const viewer of viewers) {
      const scroll = viewer.scroll.bind(viewer);
      viewer.scroll = (step) => (scroll(step), viewers.filter((other) => other !== viewer).forEach((other) => other.show().catch(() => {})));
    }
    this.viewers = viewers;
    const actions = about.role !== "new"
      ? h("p", { class: "note" }, about.role === "test" ? "A test case: it is never trained on, so that the score stays honest." : "")
      : h("div", { class: "row" },
          h("button", { type: "button", class: about.state === "done" ? "" : "main", title: "Accept (A)", onclick: () => this.accept() }, about.state === "done" ? "Accept again" : "Accept"),
          h("button", { type: "button", title: "Mend (M)", onclick: () => this.mend() }, "Mend"));
    this.stage.replaceChildren(
      h("div", { class: "case-head" }, h("h2", {}, about.name), h("span", { class: "grow" }), actions),
      h("div", { class: `beside count-${viewers.length}` }, viewers.map((viewer, n) => h("figure", {}, h("figcaption", {}, sides[n][0]), viewer.element))),
      h("div", { class: "legend" }, store.labels.slice(1).map(({ name, colour }) => h("span", { class: "swatch", colour }, name))),
    );
    await Promise.all(viewers.map((viewer) => viewer.show()));
    // Begin where there is something to see.
    if (!volume.isFlat && !this.seen?.has(about.id)) await this.#toLabels(volume, viewers);
  }

  async #toLabels(volume, viewers) {
    const plane = viewers[0].plane;
    const { slices } = volume.planes[plane];
    let [best, most] = [viewers[0].index, -1];
    for (let index = 0; index < slices; index += Math.max(1, Math.floor(slices / 16))) {
      const classes = await volume.classes(plane, index, this.run.id);
      const count = classes.reduce((sum, each) => sum + (each > 0), 0);
      if (count > most) [best, most] = [index, count];
    }
    if (!this.isOpen || this.viewers !== viewers) return;
    volume.move(plane, [best]);
    await Promise.all(viewers.map((viewer) => viewer.show()));
  }

  choose(id) {
    this.chosen = id;
    this.#drawList();
    return this.#drawStage();
  }

  async accept() {
    if (await this.#begin(true)) {
      toast("Accepted: it counts as finished and is trained on next time.");
      const at = this.cases.findIndex(({ id }) => id === this.chosen);
      const rest = [...this.cases.slice(at + 1), ...this.cases.slice(0, at)];
      this.chosen = rest.find(({ role, state }) => role === "new" && state !== "done")?.id ?? this.chosen;
      await store.refresh();
      await this.load();
    }
  }

  async mend() {
    const about = this.cases.find(({ id }) => id === this.chosen);
    // What is finished or being mended already is opened as it is.
    if (about.state !== "none" || (await this.#begin(false))) location.hash = `#label/${about.id}`;
  }

  async #begin(accept) {
    try {
      await post(`/api/cases/${this.chosen}/begin`, { run: this.run.id, accept });
      return true;
    } catch (error) {
      toast(error.message, "error");
      return false;
    }
  }

  async predict() {
    await post(`/api/runs/${this.run.id}/predict`).catch((error) => toast(error.message, "error"));
    await store.refresh();
  }

  async trainAgain() {
    try {
      const { run } = await post(`/api/runs/${this.run.id}/again`, { time: this.run.steps || "usual" });
      await store.refresh();
      location.hash = `#train/${run}`;
    } catch (error) {
      toast(error.message, "error");
    }
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
    if (about?.role === "new" && event.key === "a") return this.accept(), true;
    if (about?.role === "new" && event.key === "m") return this.mend(), true;
    return false;
  }
}
