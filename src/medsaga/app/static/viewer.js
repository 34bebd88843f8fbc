// Looking at an image: one large pane, for volumes the two other planes beside it; scrolling, zoom, pan, window and level.

import { h } from "./dom.js";
import { Pane, rgb, windowTable } from "./pane.js";
import { Visit } from "./visit.js";

const CHANNEL_MENU = 2;

export class Viewer {
  /** visit: in which it is seen; run: whose prediction is shown in place of the mask; null shows the mask. */
  constructor(visit, volume, { labels, run = null, sides = true, name = "Image" }) {
    this.visit = new Visit(visit);
    this.volume = volume;
    this.run = run;
    this.name = name;
    this.labels = labels;
    this.plane = volume.names[0];
    this.channel = 0;
    this.windows = volume.about.channels.map(({ window }) => [...window]);
    this.opacity = 0.4;
    this.hidden = false;
    this.classes = null;
    this.direction = 1;
    this.isHeld = false; // while a stroke is under way
    this.main = new Pane(name);
    this.sides = sides && !volume.isFlat ? [new Pane("Second plane"), new Pane("Third plane")] : [];
    this.caption = h("span", { class: "caption" });
    this.element = h(
      "div",
      { class: this.sides.length ? "viewer with-sides" : "viewer" },
      h("div", { class: "main-pane" }, this.main.canvas, this.caption),
      this.sides.length ? h("div", { class: "side-panes" }, this.sides.map((pane) => h("div", {}, pane.canvas))) : null,
    );
    this.#listen();
    this.#tables();
  }

  get size() {
    const { height, width, spacing } = this.volume.planes[this.plane];
    return { height, width, aspect: spacing ? spacing[0] / spacing[1] : 1 };
  }

  get index() {
    return this.volume.place(this.plane)[0];
  }

  get slices() {
    return this.volume.planes[this.plane].slices;
  }

  get channels() {
    return this.volume.about.colour ? [0, 1, 2] : [this.channel];
  }

  get otherPlanes() {
    return this.volume.names.filter((plane) => plane !== this.plane);
  }

  /** The plane and slice of the present position. */
  get at() {
    return `${this.plane} ${this.index}`;
  }

  /** Whether what is seen, and may be painted on, is the slice of the present position and channel. */
  get isSettled() {
    return this.shown === this.at;
  }

  /** Fetch and show what belongs to the present position; a later call overtakes an earlier one. */
  show() {
    this.shown = null; // what was painted before it comes would be seen no more
    this.showing = this.#show();
    return this.showing;
  }

  async #show() {
    const turn = this.visit.newest("slice");
    const [plane, index] = [this.plane, this.index];
    const [image, classes] = await Promise.all([
      this.volume.image(plane, index, this.channels),
      this.volume.classes(plane, index, this.run),
    ]);
    if (!turn.isOpen) return;
    this.values = image;
    this.classes = classes;
    this.shown = `${plane} ${index}`;
    this.redraw();
    this.volume.ahead(plane, index, this.direction, this.channels, [this.run]);
    await this.showSides();
  }

  /** Show the other planes at the present position; where they cannot be fetched they stay as they are. */
  showSides() {
    return this.#showSides(this.visit.newest("sides")).catch(() => {});
  }

  async #showSides(turn) {
    await Promise.all(
      this.sides.map(async (pane, number) => {
        const plane = this.otherPlanes[number];
        const { height, width, spacing } = this.volume.planes[plane];
        const [index, row, column] = this.volume.place(plane);
        const [channels, classes] = await Promise.all([
          this.volume.image(plane, index, this.channels),
          this.volume.classes(plane, index, this.run),
        ]);
        if (!turn.isOpen) return;
        pane.canvas.setAttribute("aria-label", `${plane} plane, slice ${index + 1}`);
        pane.marks = (context, at, across, down) => {
          const [x, y] = at(row, column);
          context.strokeStyle = "rgb(86 180 233 / 75%)";
          context.lineWidth = 1;
          context.beginPath();
          context.moveTo(0, y);
          context.lineTo(pane.canvas.clientWidth, y);
          context.moveTo(x, 0);
          context.lineTo(x, pane.canvas.clientHeight);
          context.stroke();
          context.fillStyle = "#c9d3dd";
          context.font = "12px system-ui, sans-serif";
          context.fillText(`${plane} ${index + 1}`, 8, 18);
        };
        pane.show({ height, width, aspect: spacing ? spacing[0] / spacing[1] : 1, channels, classes, ...this.#looks() });
      }),
    );
  }

  /** Draw again what is there: after painting, or another window. */
  redraw() {
    if (!this.values) return;
    const { height, width } = this.size;
    const [low, high] = this.windows[this.channel];
    this.main.show({ ...this.size, channels: this.values, classes: this.classes, ...this.#looks() });
    const where = this.volume.isFlat ? `${width} × ${height}` : `${this.plane} ${this.index + 1} / ${this.slices}`;
    const level = this.volume.about.colour ? "" : ` · window ${round(low)} to ${round(high)}`;
    this.caption.textContent = `${where}${level}`;
    this.main.canvas.setAttribute("aria-label", `${this.name}: ${where}`);
  }

  scroll(step) {
    if (this.volume.isFlat || this.isHeld) return;
    const before = this.index;
    this.direction = Math.sign(step) || 1;
    this.volume.move(this.plane, [before + step]);
    if (this.index !== before) this.show().catch(() => {});
  }

  setPlane(plane) {
    if (plane === this.plane || this.isHeld) return;
    this.plane = plane;
    this.main.reset();
    return this.show();
  }

  setWindow(low, high) {
    const channels = this.volume.about.colour ? this.windows.keys() : [this.channel];
    for (const channel of channels) this.windows[channel] = [low, Math.max(low + 1e-6, high)];
    this.#tables();
    this.redraw();
    cancelAnimationFrame(this.later);
    this.later = requestAnimationFrame(() => this.showSides());
  }

  /** Drag of the mouse in pixels: to the right widens the window, upwards makes it brighter. */
  dragWindow([low, high], dx, dy) {
    const width = high - low;
    const [middle, next] = [(low + high) / 2 + (dy / 300) * width, Math.max(width * 0.02, width * Math.exp(dx / 200))];
    this.setWindow(middle - next / 2, middle + next / 2);
  }

  setChannel(channel) {
    this.channel = channel;
    return this.show();
  }

  setLabels(labels) {
    this.labels = labels;
    this.redraw();
    this.showSides();
  }

  #looks() {
    return {
      tables: this.tables,
      colours: this.labels.map(({ colour }) => rgb(colour)),
      opacity: this.hidden ? 0 : this.opacity,
    };
  }

  #tables() {
    const channels = this.volume.about.channels;
    const shown = this.volume.about.colour ? [0, 1, 2] : [this.channel];
    this.tables = shown.map((channel) => windowTable(channels[channel], this.windows[channel]));
  }

  #listen() {
    const canvas = this.main.canvas;
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const box = canvas.getBoundingClientRect();
        if (event.ctrlKey || event.metaKey || this.volume.isFlat)
          this.main.zoomBy(Math.exp(-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top);
        else this.scroll(Math.sign(event.deltaY));
      },
      { passive: false },
    );
    this.sides.forEach((pane, number) => {
      const follow = (event) => {
        if (!(event.buttons & 1)) return;
        const [row, column] = pane.pixel(event) ?? [];
        if (row === undefined) return;
        this.volume.move(this.otherPlanes[number], [undefined, row, column]);
        this.show().catch(() => {});
      };
      pane.canvas.addEventListener("pointerdown", follow);
      pane.canvas.addEventListener("pointermove", follow);
      pane.canvas.addEventListener("dblclick", () => this.setPlane(this.otherPlanes[number])?.catch(() => {}));
      pane.canvas.title = "Click to go there, double-click to enlarge this plane";
      pane.canvas.addEventListener(
        "wheel",
        (event) => {
          event.preventDefault();
          const plane = this.otherPlanes[number];
          this.volume.move(plane, [this.volume.place(plane)[0] + Math.sign(event.deltaY)]);
          this.show().catch(() => {});
        },
        { passive: false },
      );
    });
  }

  /** Controls for the channel and the plane, where there is a choice. */
  controls() {
    const { names, colour, channels } = this.volume.about;
    const parts = [];
    if (!colour && channels.length >= CHANNEL_MENU)
      parts.push(
        h(
          "label",
          { class: "field" },
          "Channel",
          h(
            "select",
            { onchange: (event) => this.setChannel(Number(event.target.value)).then(() => this.setWindow(...this.windows[this.channel])) },
            names.map((name, index) => h("option", { value: String(index) }, name)),
          ),
        ),
      );
    return parts;
  }
}

const round = (value) => (Math.abs(value) >= 10 ? Math.round(value) : Number(value.toPrecision(3)));
