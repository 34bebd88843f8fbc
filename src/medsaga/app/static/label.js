// The label view: a case, what is chosen to paint with, and what the server does to its label map.

import { get, post } from "./api.js";
import { confirmed, h, toast, told } from "./dom.js";
import { pressKey } from "./keyboard.js";
import { drawMarks } from "./marks.js";
import { listenToMouse } from "./mouse.js";
import { Painting } from "./painting.js";
import { MOST_RADIUS, paints, palette } from "./palette.js";
import { Panel } from "./panel.js";
import { inTurn, saved } from "./saving.js";
import { store } from "./store.js";
import { Viewer } from "./viewer.js";
import { Volume } from "./volume.js";

const EMPTY = "Nothing is outlined here. A finished case without a label is trained on as one where there is nothing to find.";

export async function labelView(visit, id) {
  const cases = await visit.still(get("/api/cases"));
  const at = Math.max(0, cases.findIndex((each) => each.id === id));
  if (!cases.length) return { element: h("p", { class: "empty" }, "There are no images in this folder.") };
  // Strokes of the view before may still be on their way, and this may be its case again.
  const volume = await visit.still(saved().then(() => Volume.open(cases[at].id)));
  const editor = new Editor(visit, volume, cases, at);
  await editor.viewer.show();
  return editor;
}

class Editor {
  /** Where the mouse is, [row, column], and whether the cursor of the keys is shown in its place. */
  hover = null;
  byKeys = false;
  /** Changes that the server is asked for, and the last of them: nothing is painted before it is seen. */
  #asked = 0;
  #change = Promise.resolve();
  /** How often the labels have become others below what was seen: strokes on what was seen before are not sent. */
  sight = 0;

  constructor(visit, volume, cases, at) {
    this.visit = visit;
    this.volume = volume;
    this.about = cases[at];
    this.cases = cases;
    this.at = at;
    this.status = volume.about;
    this.viewer = new Viewer(visit, volume, { labels: store.labels, name: this.about.name });
    this.viewer.opacity = palette.opacity;
    this.viewer.main.canvas.tabIndex = 0;
    this.viewer.main.canvas.classList.add("paintable");
    this.viewer.main.marks = (context, place, across, down) => drawMarks(this, context, place, across, down);
    if (palette.label >= store.labels.length) palette.label = 1;
    this.painting = new Painting(this);
    this.panel = new Panel(this);
    this.element = h("div", { class: "work" }, this.panel.element, h("div", { class: "stage" }, this.panel.head, this.viewer.element));
    listenToMouse(this);
    this.refresh();
  }

  get canPaint() {
    return !this.status.why_not && store.labels.length > 1;
  }

  /** Whether what is seen is the slice of the present position as it is on the server. */
  get isReady() {
    return this.canPaint && !this.#asked && this.viewer.isSettled;
  }

  /** Wait until what was asked for is answered and seen, or cannot be. */
  async ready() {
    while (this.visit.isOpen && this.canPaint && !this.isReady) {
      await this.#change;
      const isSeen = await this.viewer.showing.then(() => true, () => false);
      if (!isSeen) return;
    }
  }

  key(event) {
    return pressKey(this, event);
  }

  /** Called when the labels of the folder change. */
  update() {
    this.viewer.setLabels(store.labels);
    this.refresh();
  }

  refresh() {
    this.panel.refresh();
    this.viewer.main.paint();
  }

  setTool(name) {
    if (palette.tool !== name) this.painting.points = [];
    palette.tool = name;
    this.refresh();
  }

  setRadius(radius) {
    palette.radius = Math.max(1, Math.min(MOST_RADIUS, radius));
    this.refresh();
  }

  setOpacity(opacity) {
    this.viewer.opacity = palette.opacity = Math.max(0, Math.min(1, opacity));
    this.viewer.redraw();
    this.viewer.showSides();
    this.refresh();
  }

  setLabel(label) {
    if (label < 1 || label >= store.labels.length) return;
    palette.label = label;
    if (palette.tool === "eraser" || !paints(palette.tool)) palette.tool = "brush";
    this.refresh();
  }

  async setPlane(plane) {
    this.painting.points = [];
    await told(this.viewer.setPlane(plane));
    this.refresh();
  }

  nextPlane() {
    if (this.volume.isFlat) return;
    const { names } = this.volume;
    this.setPlane(names[(names.indexOf(this.viewer.plane) + 1) % names.length]);
  }

  toggleLabels() {
    this.viewer.hidden = !this.viewer.hidden;
    this.viewer.redraw();
    this.viewer.showSides();
  }

  moveCursor([down, right], step) {
    const [, row, column] = this.volume.place(this.viewer.plane);
    this.volume.move(this.viewer.plane, [undefined, row + down * step, column + right * step]);
    this.byKeys = true;
    this.viewer.main.paint();
    this.viewer.showSides();
  }

  dabByKey() {
    this.byKeys = true;
    return this.painting.dabByKey();
  }

  /** Have the server change the label map; return its answer, null where it refuses or the user has gone elsewhere. */
  async #ask(path, document) {
    if (this.viewer.isHeld) return null; // not below a stroke
    let isOld = false;
    const answer = await this.#see(() =>
      post(`/api/cases/${this.about.id}/${path}`, { ...document, seen: this.status.stamp }).catch((error) => {
        isOld = error.status === 409;
        throw error;
      }),
    );
    if (isOld) await this.lookAgain();
    return this.visit.isOpen ? answer : null;
  }

  /** See the label map as it is on the server, where it may have changed elsewhere. */
  lookAgain() {
    this.sight++;
    return this.#see(() => get(`/api/cases/${this.about.id}`));
  }

  /** Show the label map after what a function asks of the server; return the answer, null where it is an error. */
  #see(ask) {
    const change = this.#seeInTurn(ask);
    this.#change = change;
    return change;
  }

  async #seeInTurn(ask) {
    this.#asked++;
    const answer = await told(
      inTurn(async () => {
        this.status = await ask();
        this.sight++;
        return this.status;
      }),
    );
    if (answer && this.visit.isOpen) {
      this.volume.forgetLabels();
      if (this.volume.names.includes(answer.at?.[0])) {
        this.viewer.plane = answer.at[0];
        this.volume.move(answer.at[0], [answer.at[1]]);
      }
      await told(this.viewer.show());
    }
    this.#asked--;
    this.refresh();
    return answer;
  }

  /** Called when something in the folder has changed: another tab or program may have changed these labels. */
  async revised() {
    const isBusy = () => this.#asked || this.painting.pending || this.viewer.isHeld;
    if (isBusy()) return;
    const about = await this.visit.still(get(`/api/cases/${this.about.id}`).catch(() => null));
    if (!about || isBusy()) return;
    if (about.stamp !== this.status.stamp) return void (await this.lookAgain());
    this.status = about;
    this.refresh();
  }

  undo() {
    if (this.painting.points.length) {
      this.painting.points.pop();
      this.viewer.main.paint();
    } else if (this.status.undo || this.painting.pending) this.#ask("undo");
  }

  redo() {
    if (this.status.redo) this.#ask("redo");
  }

  async interpolate() {
    if (!this.canPaint || this.volume.isFlat) return;
    const { label } = palette;
    const answer = await this.#ask("interpolate", { plane: this.viewer.plane, index: this.viewer.index, label });
    if (answer) toast(`Filled ${answer.filled} ${answer.filled === 1 ? "slice" : "slices"} of ${store.labels[label].name}.`);
  }

  /** Start the label map anew, from a prediction or an earlier version. */
  begin(document) {
    return this.#ask("begin", document);
  }

  /** Make a finished case one that is begun. */
  async reopen() {
    if (await this.#ask("reopen")) await store.refresh();
  }

  async finish() {
    if (this.status.state !== "done") {
      await saved(); // the stroke under way may be the first label
      if (!this.visit.isOpen) return;
      if (this.status.empty && !(await confirmed("Finish it without a label?", EMPTY, "Finish it empty"))) return;
      if (!(await this.#ask("finish"))) return;
    }
    await store.refresh();
    const cases = await this.visit.still(told(get("/api/cases")));
    if (!cases) return;
    const rest = [...cases.slice(this.at + 1), ...cases.slice(0, this.at)];
    const next = rest.find((each) => each.state !== "done") ?? rest[0];
    if (rest.every((each) => each.state === "done")) toast("Every case is finished. Train when you like.");
    if (next) this.visit.go(`label/${next.id}`);
  }
}
