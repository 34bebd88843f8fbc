// The mouse, pen or finger on the image of the label view: painting, and the drags that change the window or the place.

import { palette } from "./palette.js";

export function listenToMouse(editor) {
  const { viewer, painting } = editor;
  const { canvas } = viewer.main;
  let drag = null;

  canvas.addEventListener("pointerdown", (event) => {
    if (drag || !viewer.classes) return;
    canvas.setPointerCapture(event.pointerId);
    canvas.focus({ preventScroll: true });
    editor.byKeys = false;
    const kind = event.button === 2 || palette.tool === "window" ? "window" : event.button === 1 || event.shiftKey || palette.tool === "pan" ? "pan" : "paint";
    if (kind === "paint") {
      const begun = painting.press(viewer.main.pixel(event), event);
      drag = begun && { kind, begun };
      viewer.isHeld = Boolean(drag);
    } else {
      drag = { kind, x: event.clientX, y: event.clientY, pan: [...viewer.main.pan], window: [...viewer.windows[viewer.channel]] };
    }
    event.preventDefault();
  });

  canvas.addEventListener("pointermove", (event) => {
    editor.hover = viewer.main.pixel(event);
    editor.byKeys = false;
    if (drag?.kind === "paint") {
      const events = event.getCoalescedEvents?.() ?? [event];
      painting.drag(drag.begun, events.map((each) => viewer.main.pixel(each)));
      return;
    }
    if (drag?.kind === "window") viewer.dragWindow(drag.window, event.clientX - drag.x, event.clientY - drag.y);
    else if (drag) viewer.main.pan = [drag.pan[0] + event.clientX - drag.x, drag.pan[1] + event.clientY - drag.y];
    viewer.main.paint();
  });

  const end = () => {
    viewer.isHeld = false;
    if (drag?.kind === "paint") painting.release(drag.begun);
    drag = null;
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("pointerleave", () => {
    editor.hover = null;
    viewer.main.paint();
  });
  canvas.addEventListener("dblclick", () => palette.tool === "polygon" && painting.closePolygon());
}
