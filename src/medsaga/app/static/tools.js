// What the tools do to the classes of a slice: plain functions on arrays, row by row.

/** Paint an ellipse of a radius in pixels of the finer side; aspect: height of a pixel through its width. */
export function dab(classes, { height, width }, [row, column], radius, label, aspect = 1) {
  const [tall, wide] = aspect >= 1 ? [radius / aspect, radius] : [radius, radius * aspect];
  const [down, across] = [Math.max(0.5, tall), Math.max(0.5, wide)];
  for (let r = Math.max(0, Math.ceil(row - down)); r <= Math.min(height - 1, Math.floor(row + down)); r++)
    for (let c = Math.max(0, Math.ceil(column - across)); c <= Math.min(width - 1, Math.floor(column + across)); c++)
      if (((r - row) / down) ** 2 + ((c - column) / across) ** 2 <= 1) classes[r * width + c] = label;
}

/** Paint from one pixel to another without gaps. */
export function stroke(classes, size, from, to, radius, label, aspect = 1) {
  const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
  const steps = Math.max(1, Math.ceil(length / Math.max(0.5, radius / 3)));
  for (let step = 0; step <= steps; step++) {
    const share = step / steps;
    dab(classes, size, [from[0] + share * (to[0] - from[0]), from[1] + share * (to[1] - from[1])], radius, label, aspect);
  }
}

/** Give the connected pixels of one class, from a pixel on, another. */
export function fill(classes, { height, width }, [row, column], label) {
  const start = Math.round(row) * width + Math.round(column);
  const before = classes[start];
  if (before === undefined || before === label) return;
  const waiting = [start];
  classes[start] = label;
  while (waiting.length) {
    const at = waiting.pop();
    const c = at % width;
    for (const next of [c > 0 ? at - 1 : -1, c < width - 1 ? at + 1 : -1, at - width, at + width])
      if (next >= 0 && next < height * width && classes[next] === before) {
        classes[next] = label;
        waiting.push(next);
      }
  }
}

/** Fill a polygon of [row, column] points: pixels whose middle lies inside, by the even-odd rule. */
export function polygon(classes, { height, width }, points, label) {
  for (let r = 0; r < height; r++) {
    const cuts = [];
    for (let n = 0; n < points.length; n++) {
      const [[r0, c0], [r1, c1]] = [points[n], points[(n + 1) % points.length]];
      if (r0 <= r !== r1 <= r) cuts.push(c0 + ((r - r0) / (r1 - r0)) * (c1 - c0));
    }
    cuts.sort((a, b) => a - b);
    for (let n = 0; n + 1 < cuts.length; n += 2)
      for (let c = Math.max(0, Math.ceil(cuts[n])); c <= Math.min(width - 1, Math.floor(cuts[n + 1])); c++) classes[r * width + c] = label;
  }
}

/** Lay the labels of one slice over another: background leaves what is there. */
export function copyOver(classes, from) {
  for (let at = 0; at < from.length; at++) if (from[at]) classes[at] = from[at];
}

/** The smallest box in which two slices differ, with what is in it now; null where they do not. */
export function difference(before, after, { height, width }) {
  let [top, bottom, left, right] = [height, -1, width, -1];
  for (let r = 0, at = 0; r < height; r++)
    for (let c = 0; c < width; c++, at++)
      if (before[at] !== after[at]) {
        top = Math.min(top, r);
        bottom = Math.max(bottom, r);
        left = Math.min(left, c);
        right = Math.max(right, c);
      }
  if (bottom < 0) return null;
  const box = { top, left, height: bottom - top + 1, width: right - left + 1 };
  const content = new Uint8Array(box.height * box.width);
  for (let r = 0; r < box.height; r++)
    content.set(after.subarray((top + r) * width + left, (top + r) * width + left + box.width), r * box.width);
  return { ...box, content };
}
