// What the tools do to the slice that is seen. It is shown at once, and saved; what cannot be saved is taken back.

import { send } from "./api.js";
import { toast, told } from "./dom.js";
import { palette, paints } from "./palette.js";
import { inTurn } from "./saving.js";
import { copyOver, dab, difference, fill, polygon, stroke } from "./tools.js";

export class Painting {
  /** The corners of the polygon under way, [row, column] each, and the slice that it is on. */
  points = [];
  pointsAt = null;
  /** Strokes that are not answered yet. */
  pending = 0;

  constructor(editor) {
    this.editor = editor;
    this.viewer = editor.viewer;
    this.volume = editor.volume;
  }

  /** Save what has changed in a slice of the present plane since a sight of it, unless the labels have changed elsewhere. */
  commit(kind, before, after, index, sight) {
    const { plane, size } = this.viewer;
    const { editor } = this;
    if (sight !== editor.sight) {
      toast("The last stroke was not saved. The labels below it have changed meanwhile.", "error");
      told(this.viewer.show());
      return;
    }
    const box = difference(before, after, size);
    if (!box) return;
    this.volume.painted(plane, index, after);
    const query = new URLSearchParams({ kind, plane, start: index, slices: 1, top: box.top, left: box.left, height: box.height, width: box.width });
    this.pending++;
    editor.panel.sayHowFar();
    inTurn(async () => {
      if (sight !== editor.sight) return; // painted on what was not saved, either
      editor.status = await send(`/api/cases/${editor.about.id}/edit?${query}&seen=${editor.status.stamp}`, box.content);
    })
      .catch((error) => {
        toast(`The last stroke was not saved. ${error.message}`, "error");
        return editor.lookAgain();
      })
      .finally(() => {
        this.pending--;
        editor.refresh();
        if (!this.pending) this.viewer.showSides();
      });
  }

  /** Show classes in place of those that are seen, and save them. */
  #replace(kind, after) {
    const before = this.viewer.classes;
    this.viewer.classes = after;
    this.viewer.redraw();
    this.commit(kind, before, after, this.viewer.index, this.editor.sight);
  }

  /** Do what a press at [row, column] does with the tool; return a stroke that goes on, or null. */
  press(at, { detail, ctrlKey }) {
    // While the next slice is on its way, the last one is still seen.
    if (!at || !this.editor.isReady) return null;
    const { size, index } = this.viewer;
    this.volume.move(this.viewer.plane, [undefined, at[0], at[1]]);
    if (palette.tool === "polygon") {
      if (this.pointsAt !== this.viewer.at) this.points = [];
      this.pointsAt = this.viewer.at;
      if (detail < 2) this.points.push(at);
      this.viewer.main.paint();
      return null;
    }
    const after = this.viewer.classes.slice();
    if (palette.tool === "fill") {
      if (at[0] < -0.5 || at[1] < -0.5 || at[0] >= size.height - 0.5 || at[1] >= size.width - 0.5) return null;
      fill(after, size, at, ctrlKey ? 0 : palette.label);
      this.#replace("fill", after);
      return null;
    }
    const label = palette.tool === "eraser" || ctrlKey ? 0 : palette.label;
    const begun = { kind: palette.tool, before: this.viewer.classes, after, last: at, label, index, sight: this.editor.sight };
    dab(after, size, at, palette.radius, label, size.aspect);
    this.viewer.classes = after;
    this.viewer.redraw();
    return begun;
  }

  /** Go on with a stroke through points, [row, column] each. */
  drag(begun, points) {
    for (const to of points) {
      stroke(begun.after, this.viewer.size, begun.last, to, palette.radius, begun.label, this.viewer.size.aspect);
      begun.last = to;
    }
    this.viewer.classes = begun.after;
    this.viewer.redraw();
  }

  release({ kind, before, after, index, sight }) {
    this.commit(kind, before, after, index, sight);
  }

  /** Press and release where the cursor is; keys may come faster than slices and answers. */
  async dabByKey() {
    const { at } = this.viewer;
    const [, row, column] = this.volume.place(this.viewer.plane);
    await this.editor.ready();
    if (!paints(palette.tool) || this.viewer.at !== at) return;
    const begun = this.press([row, column], { detail: 1, ctrlKey: false });
    if (begun) this.release(begun);
  }

  closePolygon() {
    if (this.points.length > 2 && this.editor.isReady && this.pointsAt === this.viewer.at) {
      const after = this.viewer.classes.slice();
      polygon(after, this.viewer.size, this.points, palette.label);
      this.#replace("polygon", after);
    }
    this.dropPolygon();
  }

  dropPolygon() {
    this.points = [];
    this.viewer.main.paint();
  }

  /** Lay the labels of the slice that is seen over the next one, or the previous one, and go there. */
  async copy(step) {
    if (this.volume.isFlat || !this.editor.isReady) return;
    const { plane, index, slices } = this.viewer;
    const next = index + step;
    if (next < 0 || next >= slices) return;
    const { visit, sight } = this.editor;
    const both = await visit.still(told(Promise.all([this.volume.classes(plane, index), this.volume.classes(plane, next)])));
    if (!both || `${plane} ${index}` !== this.viewer.at) return; // the user has scrolled on
    const [from, there] = both;
    const after = there.slice();
    copyOver(after, from);
    this.commit("copy", there, after, next, sight);
    this.viewer.scroll(step);
  }
}
