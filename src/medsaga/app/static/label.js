// The label view: a tool, a label, an image. Every stroke is saved when it ends; one that cannot be saved is taken back.

import { get, post, send } from "./api.js";
import { h, toast } from "./dom.js";
import { labelList } from "./labels.js";
import { store } from "./store.js";
import { copyOver, dab, difference, fill, polygon, stroke } from "./tools.js";
import { Viewer } from "./viewer.js";
import { Volume } from "./volume.js";

const TOOLS = [
  { name: "brush", text: "Brush", key: "b" },
  { name: "eraser", text: "Eraser", key: "e" },
  { name: "fill", text: "Fill", key: "f" },
  { name: "polygon", text: "Polygon", key: "p" },
  { name: "window", text: "Window", key: "w" },
  { name: "pan", text: "Move", key: "g" },
];

const memory = { tool: "brush", radius: 6, label: 1, opacity: 0.4 };

export async function labelView(id) {
  const cases = await get("/api/cases");
  const at = Math.max(0, cases.findIndex((each) => each.id === id));
  const about = cases[at];
  if (!about) return { element: h("p", { class: "empty" }, "There are no images in this folder.") };
  const volume = await Volume.open(about.id);
  const editor = new Editor(volume, about, cases, at);
  await editor.viewer.show();
  return editor;
}

class Editor {
  constructor(volume, about, cases, at) {
    this.volume = volume;
    this.about = about;
    this.cases = cases;
    this.at = at;
    this.status = volume.about;
    this.points = [];
    this.hover = null;
    this.byKeys = false;
    this.queue = Promise.resolve();
    this.pending = 0;
    this.viewer = new Viewer(volume, { labels: store.labels, name: about.name });
    this.viewer.opacity = memory.opacity;
    this.viewer.main.canvas.tabIndex = 0;
    this.viewer.main.canvas.classList.add("paintable");
    this.viewer.main.marks = (context, place, across, down) => this.#marks(context, place, across, down);
    if (memory.label >= store.labels.length) memory.label = 1;
    this.element = this.#build();
    this.#listen();
    this.#refresh();
  }

  get canPaint() {
    return !this.status.why_not && store.labels.length > 1;
  }

  #build() {
    const tools = TOOLS.map(({ name, text, key }) =>
      h(
        "button",
        {
          type: "button",
          class: "tool",
          "data-tool": name,
          title: `${text} (${key.toUpperCase()})`,
          "aria-pressed": String(memory.tool === name),
          onclick: () => this.setTool(name),
        },
        text,
        h("kbd", { "aria-hidden": "true" }, key.toUpperCase()),
      ),
    );
    this.radius = h("input", { type: "range", min: "1", max: "40", step: "1", value: String(memory.radius), oninput: () => this.setRadius(Number(this.radius.value)) });
    this.opacity = h("input", {
      type: "range", min: "0", max: "1", step: "0.05", value: String(memory.opacity),
      oninput: () => this.setOpacity(Number(this.opacity.value)),
    });
    this.undoButton = h("button", { type: "button", title: "Undo (Ctrl+Z)", onclick: () => this.undo() }, "Undo");
    this.redoButton = h("button", { type: "button", title: "Redo (Ctrl+Shift+Z)", onclick: () => this.redo() }, "Redo");
    this.saved = h("span", { class: "saved", role: "status" });
    this.doneButton = h("button", { type: "button", class: "main", title: "Finish this case and go to the next (Enter)", onclick: () => this.finish() }, "Finish case");
    this.note = h("p", { class: "note" });
    this.labelPlace = h("div", {});
    this.history = h("details", { class: "history" });
    const planes = this.volume.isFlat
      ? null
      : h("div", { class: "segments planes", role: "group", "aria-label": "Plane" },
          this.volume.names.map((plane) => h("button", { type: "button", "data-plane": plane, onclick: () => this.setPlane(plane) }, plane)));
    const between = this.volume.isFlat
      ? null
      : h("div", { class: "row" },
          h("button", { type: "button", title: "Copy to the next slice (C)", onclick: () => this.copy(1) }, "Copy to next"),
          h("button", { type: "button", title: "Interpolate between outlined slices (I)", onclick: () => this.interpolate() }, "Interpolate"));
    this.runs = h("div", {});
    const panel = h(
      "aside",
      { class: "panel", "aria-label": "Tools" },
      h("section", {}, h("h2", {}, "Tools"), h("div", { class: "tools" }, tools),
        h("label", { class: "field" }, "Brush size", this.radius), between,
        h("div", { class: "row" }, this.undoButton, this.redoButton)),
      h("section", {}, h("h2", {}, "Labels"), this.labelPlace, h("label", { class: "field" }, "Opacity", this.opacity)),
      h("section", {}, planes ? h("h2", {}, "Plane") : null, planes, this.viewer.controls()),
      h("section", { class: "end" }, this.note, this.runs, this.doneButton, this.history),
    );
    const previous = this.cases[this.at - 1];
    const next = this.cases[this.at + 1];
    const head = h(
      "div",
      { class: "case-head" },
      h("a", { class: previous ? "step" : "step off", href: previous ? `#label/${previous.id}` : null, title: "Previous case (Shift+N)", "aria-label": "Previous case" }, "‹"),
      h("h1", {}, this.about.name),
      (this.badge = h("span", { class: "badge" })),
      h("span", { class: "soft" }, `case ${this.at + 1} of ${this.cases.length}`),
      this.saved,
      h("a", { class: next ? "step" : "step off", href: next ? `#label/${next.id}` : null, title: "Next case (N)", "aria-label": "Next case" }, "›"),
    );
    return h("div", { class: "work" }, panel, h("div", { class: "stage" }, head, this.viewer.element));
  }

  /** Called when the labels of the folder change. */
  update() {
    this.viewer.setLabels(store.labels);
    this.#refresh();
  }

  close() {
    this.viewer.turn++;
  }

  setTool(name) {
    if (memory.tool !== name) this.points = [];
    memory.tool = name;
    this.#refresh();
  }

  setRadius(radius) {
    memory.radius = Math.max(1, Math.min(40, radius));
    this.radius.value = String(memory.radius);
    this.viewer.main.paint();
  }

  setOpacity(opacity) {
    this.viewer.opacity = memory.opacity = Math.max(0, Math.min(1, opacity));
    this.opacity.value = String(memory.opacity);
    this.viewer.redraw();
    this.viewer.showSides();
  }

  setLabel(label) {
    if (label < 1 || label >= store.labels.length) return;
    memory.label = label;
    if (["eraser", "window", "pan"].includes(memory.tool)) memory.tool = "brush";
    this.#refresh();
  }

  setPlane(plane) {
    this.points = [];
    this.viewer.setPlane(plane).then(() => this.#refresh());
  }

  #refresh() {
    for (const button of this.element.querySelectorAll("[data-tool]")) {
      button.setAttribute("aria-pressed", String(button.dataset.tool === memory.tool));
      button.disabled = !this.canPaint && !["window", "pan"].includes(button.dataset.tool);
    }
    for (const button of this.element.querySelectorAll("[data-plane]"))
      button.setAttribute("aria-pressed", String(button.dataset.plane === this.viewer.plane));
    this.labelPlace.replaceChildren(labelList(memory.label, (label) => this.setLabel(label)));
    this.undoButton.disabled = !this.status.undo;
    this.redoButton.disabled = !this.status.redo;
    const { state } = this.status;
    this.badge.textContent = { none: "not labelled", draft: "begun", done: "finished" }[state];
    this.badge.className = `badge ${state}`;
    this.doneButton.hidden = Boolean(this.status.why_not);
    this.doneButton.textContent = state === "done" ? "Next case" : "Finish case";
    this.doneButton.disabled = store.labels.length < 2;
    this.note.textContent = this.status.why_not
      ? `Only to look at: ${this.status.why_not}.`
      : store.labels.length < 2
        ? "Name what you want to outline under Labels, then paint."
        : state === "done"
          ? "This case is trained on. Changes are saved as you paint."
          : "Outline every label, then finish the case: only finished cases are trained on.";
    this.saved.textContent = this.pending ? "Saving…" : this.status.undo || this.status.redo ? "All strokes saved" : "";
    this.#offerPrediction();
    this.#showHistory();
    this.viewer.main.paint();
  }

  #offerPrediction() {
    const run = store.newestWith(this.about.id);
    this.runs.replaceChildren(
      ...(run && this.status.state === "none" && !this.status.why_not
        ? [h("button", { type: "button", onclick: () => this.begin({ run }) }, "Start from the prediction")]
        : []),
    );
  }

  #showHistory() {
    const versions = this.status.history ?? [];
    this.history.hidden = versions.length < 2;
    this.history.replaceChildren(
      h("summary", {}, `History (${versions.length})`),
      h("ol", {}, versions.map(({ number, origin, time }) =>
        h("li", {},
          h("span", {}, { empty: "painted", file: "mask of the folder", prediction: "prediction", version: "brought back" }[origin], ` ${new Date(time * 1000).toLocaleTimeString()}`),
          number === versions.length ? h("span", { class: "soft" }, "now") : h("button", { type: "button", class: "quiet", onclick: () => this.begin({ version: number }) }, "Bring back")))),
    );
  }

  // Changing the label map -------------------------------------------------------------------------------------------

  /** Show a changed slice at once and save it; strokes are saved one after the other. */
  commit(kind, before, after, place = this.viewer.volume.place(this.viewer.plane)[0]) {
    const { plane, size } = this.viewer;
    const box = difference(before, after, size);
    if (!box) return;
    const key = `${plane} ${place} null`;
    this.volume.labels.set(key, Promise.resolve(after));
    const query = new URLSearchParams({ kind, plane, start: place, slices: 1, top: box.top, left: box.left, height: box.height, width: box.width });
    this.pending++;
    this.saved.textContent = "Saving…";
    this.queue = this.queue
      .then(() => send(`/api/cases/${this.about.id}/edit?${query}`, box.content))
      .then((status) => {
        this.status = status;
        this.volume.forgetLabels(key);
      })
      .catch((error) => {
        this.volume.forgetLabels();
        toast(`The last stroke was not saved. ${error.message}`, "error");
        return this.viewer.show();
      })
      .finally(() => {
        this.pending--;
        this.#refresh();
        if (!this.pending) this.viewer.showSides().catch(() => {});
      });
  }

  async #ask(path, document) {
    await this.queue;
    try {
      const answer = await post(`/api/cases/${this.about.id}/${path}`, document);
      this.status = answer;
      this.volume.forgetLabels();
      if (answer.at && (answer.at[0] === this.viewer.plane || this.volume.names.includes(answer.at[0]))) {
        this.viewer.plane = answer.at[0];
        this.volume.move(answer.at[0], [answer.at[1]]);
      }
      await this.viewer.show();
      this.#refresh();
      return answer;
    } catch (error) {
      toast(error.message, "error");
      return null;
    }
  }

  undo() {
    if (this.points.length) {
      this.points.pop();
      this.viewer.main.paint();
      return null;
    }
    return this.status.undo || this.pending ? this.#ask("undo") : null;
  }

  redo() {
    return this.status.redo ? this.#ask("redo") : null;
  }

  async interpolate() {
    if (!this.canPaint || this.volume.isFlat) return;
    const answer = await this.#ask("interpolate", { plane: this.viewer.plane, index: this.viewer.index, label: memory.label });
    if (answer) toast(`Filled ${answer.filled} ${answer.filled === 1 ? "slice" : "slices"} of ${store.labels[memory.label].name}.`);
  }

  begin(document) {
    return this.#ask("begin", document);
  }

  async copy(step) {
    if (!this.canPaint || this.volume.isFlat) return;
    const { plane, index, slices } = this.viewer;
    const next = index + step;
    if (next < 0 || next >= slices) return;
    const [from, there] = await Promise.all([this.volume.classes(plane, index), this.volume.classes(plane, next)]);
    const after = there.slice();
    copyOver(after, from);
    this.commit("copy", there, after, next);
    this.viewer.scroll(step);
  }

  async finish() {
    if (this.status.state !== "done" && !(await this.#ask("finish"))) return;
    await store.refresh();
    this.cases = await get("/api/cases");
    const rest = [...this.cases.slice(this.at + 1), ...this.cases.slice(0, this.at)];
    const next = rest.find((each) => each.state !== "done") ?? rest[0];
    if (rest.every((each) => each.state === "done")) toast("Every case is finished. Train when you like.");
    if (next) location.hash = `#label/${next.id}`;
  }

  // The mouse --------------------------------------------------------------------------------------------------------

  #listen() {
    const canvas = this.viewer.main.canvas;
    let drag = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (drag || !this.viewer.classes) return;
      canvas.setPointerCapture(event.pointerId);
      canvas.focus({ preventScroll: true });
      this.byKeys = false;
      const at = this.viewer.main.pixel(event);
      const kind = event.button === 2 || memory.tool === "window" ? "window" : event.button === 1 || event.shiftKey || memory.tool === "pan" ? "pan" : "paint";
      if (kind === "paint") {
        drag = this.#press(at, event);
        this.viewer.isHeld = Boolean(drag);
      } else {
        const { pan } = this.viewer.main;
        drag = { kind, x: event.clientX, y: event.clientY, pan: [...pan], window: [...this.viewer.windows[this.viewer.channel]] };
      }
      event.preventDefault();
    });
    canvas.addEventListener("pointermove", (event) => {
      this.hover = this.viewer.main.pixel(event);
      this.byKeys = false;
      if (drag?.kind === "window") this.viewer.dragWindow(drag.window, event.clientX - drag.x, event.clientY - drag.y);
      else if (drag?.kind === "pan") this.viewer.main.pan = [drag.pan[0] + event.clientX - drag.x, drag.pan[1] + event.clientY - drag.y];
      else if (drag?.kind === "stroke") {
        for (const each of event.getCoalescedEvents?.() ?? [event]) {
          const to = this.viewer.main.pixel(each);
          stroke(drag.after, this.viewer.size, drag.last, to, memory.radius, drag.label, this.viewer.size.aspect);
          drag.last = to;
        }
        this.viewer.classes = drag.after;
        this.viewer.redraw();
        return;
      }
      this.viewer.main.paint();
    });
    const end = () => {
      if (drag?.kind === "stroke") this.commit(memory.tool, drag.before, drag.after, drag.index);
      this.viewer.isHeld = false;
      drag = null;
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("pointerleave", () => {
      this.hover = null;
      this.viewer.main.paint();
    });
    canvas.addEventListener("dblclick", () => memory.tool === "polygon" && this.#closePolygon());
  }

  /** Begin what a press of the button does with the tool; return a drag that goes on, or null. */
  #press(at, event) {
    // While the next slice is on its way, the last one is still seen.
    if (!this.canPaint || !at || !this.viewer.isSettled) return null;
    const { size, index } = this.viewer;
    this.volume.move(this.viewer.plane, [undefined, at[0], at[1]]);
    if (memory.tool === "polygon") {
      if (this.pointsAt !== this.viewer.at) this.points = [];
      this.pointsAt = this.viewer.at;
      if (event.detail < 2) this.points.push(at);
      this.viewer.main.paint();
      return null;
    }
    const before = this.viewer.classes;
    const after = before.slice();
    if (memory.tool === "fill") {
      if (at[0] < -0.5 || at[1] < -0.5 || at[0] >= size.height - 0.5 || at[1] >= size.width - 0.5) return null;
      fill(after, size, at, event.ctrlKey ? 0 : memory.label);
      this.viewer.classes = after;
      this.viewer.redraw();
      this.commit("fill", before, after);
      return null;
    }
    const label = memory.tool === "eraser" || event.ctrlKey ? 0 : memory.label;
    dab(after, size, at, memory.radius, label, size.aspect);
    this.viewer.classes = after;
    this.viewer.redraw();
    return { kind: "stroke", before, after, last: at, label, index };
  }

  #closePolygon() {
    if (this.points.length > 2 && this.canPaint && this.viewer.isSettled && this.pointsAt === this.viewer.at) {
      const before = this.viewer.classes;
      const after = before.slice();
      polygon(after, this.viewer.size, this.points, memory.label);
      this.viewer.classes = after;
      this.viewer.redraw();
      this.commit("polygon", before, after);
    }
    this.points = [];
    this.viewer.main.paint();
  }

  /** The brush, the polygon under way, and the cursor of those who paint by keys. */
  #marks(context, place, across, down) {
    const [, row, column] = this.volume.place(this.viewer.plane);
    const at = this.byKeys ? [row, column] : this.hover;
    context.lineWidth = 1.25;
    if (this.points.length && this.pointsAt === this.viewer.at) {
      context.strokeStyle = store.labels[memory.label]?.colour ?? "#fff";
      context.beginPath();
      [...this.points, ...(at ? [at] : [])].forEach(([r, c], n) => context[n ? "lineTo" : "moveTo"](...place(r, c)));
      context.stroke();
    }
    if (!at || !this.canPaint) return;
    const [x, y] = place(...at);
    const { aspect } = this.viewer.size;
    context.strokeStyle = "rgb(255 255 255 / 90%)";
    context.beginPath();
    if (["brush", "eraser"].includes(memory.tool)) {
      const [tall, wide] = aspect >= 1 ? [memory.radius / aspect, memory.radius] : [memory.radius, memory.radius * aspect];
      context.ellipse(x, y, Math.max(0.5, wide) * across, Math.max(0.5, tall) * down, 0, 0, 7);
    }
    if (this.byKeys || !["brush", "eraser"].includes(memory.tool)) {
      context.moveTo(x - 7, y);
      context.lineTo(x + 7, y);
      context.moveTo(x, y - 7);
      context.lineTo(x, y + 7);
    }
    context.stroke();
  }

  // The keyboard -----------------------------------------------------------------------------------------------------

  /** Do what a key is for; return whether it is for anything. */
  key(event) {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if ((event.ctrlKey || event.metaKey) && key === "z") return this.#did(event.shiftKey ? this.redo() : this.undo());
    if ((event.ctrlKey || event.metaKey) && key === "y") return this.#did(this.redo());
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
    const tool = TOOLS.find((each) => each.key === key);
    if (tool) return this.#did(this.setTool(tool.name));
    if (/^[1-9]$/.test(key)) return this.#did(this.setLabel(Number(key)));
    const arrows = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (key in arrows && document.activeElement === this.viewer.main.canvas) return this.#did(this.#moveCursor(arrows[key], event.shiftKey ? 10 : 1));
    const simple = {
      PageUp: () => this.viewer.scroll(1),
      PageDown: () => this.viewer.scroll(-1),
      ".": () => this.viewer.scroll(1),
      ",": () => this.viewer.scroll(-1),
      "[": () => this.setRadius(memory.radius - 1),
      "]": () => this.setRadius(memory.radius + 1),
      "+": () => this.viewer.main.zoomBy(1.25),
      "=": () => this.viewer.main.zoomBy(1.25),
      "-": () => this.viewer.main.zoomBy(0.8),
      r: () => this.viewer.main.reset(),
      c: () => this.copy(event.shiftKey ? -1 : 1),
      i: () => this.interpolate(),
      h: () => this.#toggle(),
      o: () => this.setOpacity(memory.opacity + (event.shiftKey ? -0.1 : 0.1)),
      v: () => this.volume.isFlat || this.setPlane(this.volume.names[(this.volume.names.indexOf(this.viewer.plane) + 1) % 3]),
      n: () => this.element.querySelector(event.shiftKey ? ".step" : ".step:last-child").click(),
      Escape: () => ((this.points = []), this.viewer.main.paint()),
    };
    if (key in simple) return this.#did(simple[key]());
    if (document.activeElement === this.viewer.main.canvas && key === " ") return this.#did(this.#dabByKey());
    if (key === "Enter" && this.points.length) return this.#did(this.#closePolygon());
    if (key === "Enter" && !["BUTTON", "A", "INPUT", "SUMMARY", "SELECT"].includes(document.activeElement?.tagName)) return this.#did(this.finish());
    return false;
  }

  #did() {
    return true;
  }

  #toggle() {
    this.viewer.hidden = !this.viewer.hidden;
    this.viewer.redraw();
    this.viewer.showSides();
  }

  #moveCursor([down, right], step) {
    const [, row, column] = this.volume.place(this.viewer.plane);
    this.volume.move(this.viewer.plane, [undefined, row + down * step, column + right * step]);
    this.byKeys = true;
    this.viewer.main.paint();
    this.viewer.showSides().catch(() => {});
  }

  async #dabByKey() {
    // Keys may come faster than slices.
    while (!this.viewer.isSettled) await this.viewer.showing;
    const [, row, column] = this.volume.place(this.viewer.plane);
    this.byKeys = true;
    if (["window", "pan"].includes(memory.tool)) return;
    const drag = this.#press([row, column], { detail: 1, ctrlKey: false });
    if (drag) this.commit(memory.tool, drag.before, drag.after, drag.index);
  }
}
