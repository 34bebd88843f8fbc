// What stands beside and above the image in the label view: tools, labels, history, and how far the case is.

import { h } from "./dom.js";
import { labelList } from "./labels.js";
import { MOST_RADIUS, paints, palette, TOOLS } from "./palette.js";
import { store } from "./store.js";

const STATES = { none: "not labelled", draft: "begun", done: "finished" };
const ORIGINS = { empty: "painted", file: "mask of the folder", prediction: "prediction", version: "brought back", other: "saved by another program" };

export class Panel {
  constructor(editor) {
    this.editor = editor;
    this.element = this.#controls();
    this.head = this.#head();
  }

  #controls() {
    const { editor } = this;
    const tools = TOOLS.map(({ name, text, key }) =>
      h(
        "button",
        { type: "button", class: "tool", "data-tool": name, title: `${text} (${key.toUpperCase()})`, onclick: () => editor.setTool(name) },
        text,
        h("kbd", { "aria-hidden": "true" }, key.toUpperCase()),
      ),
    );
    this.radius = h("input", { type: "range", min: "1", max: String(MOST_RADIUS), step: "1", oninput: () => editor.setRadius(Number(this.radius.value)) });
    this.opacity = h("input", { type: "range", min: "0", max: "1", step: "0.05", oninput: () => editor.setOpacity(Number(this.opacity.value)) });
    this.undo = h("button", { type: "button", title: "Undo (Ctrl+Z)", onclick: () => editor.undo() }, "Undo");
    this.redo = h("button", { type: "button", title: "Redo (Ctrl+Shift+Z)", onclick: () => editor.redo() }, "Redo");
    this.done = h("button", { type: "button", class: "main", title: "Finish this case and go to the next (Enter)", onclick: () => editor.finish() }, "Finish case");
    this.reopen = h("button", { type: "button", title: "Take the mask out of the folder; it stays here as begun", onclick: () => editor.reopen() }, "Not finished yet");
    this.note = h("p", { class: "note" });
    this.labels = h("div", {});
    this.history = h("details", { class: "history" });
    this.prediction = h("div", {});
    const planes = editor.volume.isFlat
      ? null
      : h("div", { class: "segments planes", role: "group", "aria-label": "Plane" },
          editor.volume.names.map((plane) => h("button", { type: "button", "data-plane": plane, onclick: () => editor.setPlane(plane) }, plane)));
    const between = editor.volume.isFlat
      ? null
      : h("div", { class: "row" },
          h("button", { type: "button", title: "Copy to the next slice (C)", onclick: () => editor.painting.copy(1) }, "Copy to next"),
          h("button", { type: "button", title: "Interpolate between outlined slices (I)", onclick: () => editor.interpolate() }, "Interpolate"));
    return h(
      "aside",
      { class: "panel", "aria-label": "Tools" },
      h("section", {}, h("h2", {}, "Tools"), h("div", { class: "tools" }, tools),
        h("label", { class: "field" }, "Brush size", this.radius), between,
        h("div", { class: "row" }, this.undo, this.redo)),
      h("section", {}, h("h2", {}, "Labels"), this.labels, h("label", { class: "field" }, "Opacity", this.opacity)),
      h("section", {}, planes ? h("h2", {}, "Plane") : null, planes, editor.viewer.controls()),
      h("section", { class: "end" }, this.note, this.prediction, h("div", { class: "row" }, this.done, this.reopen), this.history),
    );
  }

  #head() {
    const { cases, at, about } = this.editor;
    const [previous, next] = [cases[at - 1], cases[at + 1]];
    this.badge = h("span", { class: "badge" });
    this.saved = h("span", { class: "saved", role: "status" });
    return h(
      "div",
      { class: "case-head" },
      h("a", { class: previous ? "step" : "step off", href: previous ? `#label/${previous.id}` : null, title: "Previous case (Shift+N)", "aria-label": "Previous case" }, "‹"),
      h("h1", {}, about.name),
      this.badge,
      h("span", { class: "soft" }, `case ${at + 1} of ${cases.length}`),
      this.saved,
      h("a", { class: next ? "step" : "step off", href: next ? `#label/${next.id}` : null, title: "Next case (N)", "aria-label": "Next case" }, "›"),
    );
  }

  refresh() {
    const { editor } = this;
    const { state, undo, redo, why_not: whyNot } = editor.status;
    for (const button of this.element.querySelectorAll("[data-tool]")) {
      button.setAttribute("aria-pressed", String(button.dataset.tool === palette.tool));
      button.disabled = !editor.canPaint && paints(button.dataset.tool);
    }
    for (const button of this.element.querySelectorAll("[data-plane]"))
      button.setAttribute("aria-pressed", String(button.dataset.plane === editor.viewer.plane));
    this.radius.value = String(palette.radius);
    this.opacity.value = String(palette.opacity);
    this.#listLabels();
    this.undo.disabled = !undo;
    this.redo.disabled = !redo;
    this.badge.textContent = STATES[state];
    this.badge.className = `badge ${state}`;
    this.done.hidden = Boolean(whyNot);
    this.done.textContent = state === "done" ? "Next case" : "Finish case";
    this.reopen.hidden = Boolean(whyNot) || state !== "done";
    this.done.disabled = store.labels.length < 2;
    this.note.textContent = whyNot
      ? `Only to look at: ${whyNot}.`
      : store.labels.length < 2
        ? "Name what you want to outline under Labels, then paint."
        : state === "done"
          ? "This case is trained on. Changes are saved as you paint."
          : "Outline every label, then finish the case: only finished cases are trained on.";
    this.sayHowFar();
    this.#offerPrediction();
    this.#showHistory();
  }

  /** Say whether all strokes are on the disk, and the mask is in the folder. */
  sayHowFar() {
    const { painting, status } = this.editor;
    const isSaved = status.undo || status.redo ? "All strokes saved" : "";
    const isUnwritten = Boolean(status.unwritten) && !painting.pending;
    this.saved.classList.toggle("bad", isUnwritten);
    this.saved.textContent = painting.pending ? "Saving…" : isUnwritten ? `Saved, but not written into the folder: ${status.unwritten}` : isSaved;
  }

  /** List the labels anew where they have changed: a stroke that is answered must not end the writing of a name. */
  #listLabels() {
    const listed = JSON.stringify([store.labels, palette.label]);
    if (listed === this.listed) return;
    this.listed = listed;
    const isHeld = this.labels.contains(document.activeElement);
    this.labels.replaceChildren(labelList(palette.label, (label) => this.editor.setLabel(label)));
    if (isHeld) this.labels.querySelector(".label-name[aria-pressed=true]")?.focus();
  }

  #offerPrediction() {
    const run = store.newestWith(this.editor.about.id);
    const { state, why_not: whyNot } = this.editor.status;
    this.prediction.replaceChildren(
      ...(run && state === "none" && !whyNot ? [h("button", { type: "button", onclick: () => this.editor.begin({ run }) }, "Start from the prediction")] : []),
    );
  }

  #showHistory() {
    const versions = this.editor.status.history ?? [];
    this.history.hidden = versions.every(({ now }) => now);
    this.history.replaceChildren(
      h("summary", {}, `History (${versions.length})`),
      h("ol", {}, versions.map(({ number, origin, time, now }) =>
        h("li", {},
          h("span", {}, ORIGINS[origin], ` ${new Date(time * 1000).toLocaleTimeString()}`),
          now ? h("span", { class: "soft" }, "now") : h("button", { type: "button", class: "quiet", onclick: () => this.editor.begin({ version: number }) }, "Bring back")))),
    );
  }
}
