// What is drawn over the image: the tip of the brush, the polygon under way, the cursor of those who paint by keys.

import { isRound, palette } from "./palette.js";
import { store } from "./store.js";

/** place: of a pixel on the canvas; across, down: pixels of the canvas in one of the image. */
export function drawMarks(editor, context, place, across, down) {
  const { viewer, painting, byKeys } = editor;
  const [, row, column] = editor.volume.place(viewer.plane);
  const at = byKeys ? [row, column] : editor.hover;
  context.lineWidth = 1.25;
  if (painting.points.length && painting.pointsAt === viewer.at) {
    context.strokeStyle = store.labels[palette.label]?.colour ?? "#fff";
    context.beginPath();
    [...painting.points, ...(at ? [at] : [])].forEach(([r, c], n) => context[n ? "lineTo" : "moveTo"](...place(r, c)));
    context.stroke();
  }
  if (!at || !editor.canPaint) return;
  const [x, y] = place(...at);
  const { aspect } = viewer.size;
  context.strokeStyle = "rgb(255 255 255 / 90%)";
  context.beginPath();
  if (isRound(palette.tool)) {
    const [tall, wide] = aspect >= 1 ? [palette.radius / aspect, palette.radius] : [palette.radius, palette.radius * aspect];
    context.ellipse(x, y, Math.max(0.5, wide) * across, Math.max(0.5, tall) * down, 0, 0, 7);
  }
  if (byKeys || !isRound(palette.tool)) {
    context.moveTo(x - 7, y);
    context.lineTo(x + 7, y);
    context.moveTo(x, y - 7);
    context.lineTo(x, y + 7);
  }
  context.stroke();
}
