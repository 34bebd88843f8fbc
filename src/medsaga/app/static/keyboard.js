// The keys of the label view; `keys.js` has them for the help.

import { palette, TOOLS } from "./palette.js";

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const BIG_STEP = 10;
const PRESSED_BY_ENTER = ["BUTTON", "A", "INPUT", "SUMMARY", "SELECT"];

/** Do what a key is for; return whether it is for anything. */
export function pressKey(editor, event) {
  const act = actOf(editor, event);
  act?.();
  return Boolean(act);
}

function actOf(editor, event) {
  const { viewer, painting } = editor;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey || event.altKey) {
    if (event.altKey) return null;
    if (key === "z") return () => (event.shiftKey ? editor.redo() : editor.undo());
    return key === "y" ? () => editor.redo() : null;
  }
  const tool = TOOLS.find((each) => each.key === key);
  if (tool) return () => editor.setTool(tool.name);
  if (/^[1-9]$/.test(key)) return () => editor.setLabel(Number(key));
  const simple = {
    PageUp: () => viewer.scroll(1),
    PageDown: () => viewer.scroll(-1),
    ".": () => viewer.scroll(1),
    ",": () => viewer.scroll(-1),
    "[": () => editor.setRadius(palette.radius - 1),
    "]": () => editor.setRadius(palette.radius + 1),
    "+": () => viewer.main.zoomBy(1.25),
    "=": () => viewer.main.zoomBy(1.25),
    "-": () => viewer.main.zoomBy(0.8),
    r: () => viewer.main.reset(),
    c: () => painting.copy(event.shiftKey ? -1 : 1),
    i: () => editor.interpolate(),
    h: () => editor.toggleLabels(),
    o: () => editor.setOpacity(palette.opacity + (event.shiftKey ? -0.1 : 0.1)),
    v: () => editor.nextPlane(),
    n: () => editor.element.querySelector(event.shiftKey ? ".step" : ".step:last-child").click(),
    Escape: () => painting.dropPolygon(),
  };
  if (key in simple) return simple[key];
  if (document.activeElement === viewer.main.canvas) {
    if (key in ARROWS) return () => editor.moveCursor(ARROWS[key], event.shiftKey ? BIG_STEP : 1);
    if (key === " ") return () => editor.dabByKey();
  }
  if (key !== "Enter") return null;
  if (painting.points.length) return () => painting.closePolygon();
  return PRESSED_BY_ENTER.includes(document.activeElement?.tagName) ? null : () => editor.finish();
}
