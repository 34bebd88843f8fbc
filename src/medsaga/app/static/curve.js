// The curves of a training: the loss on the left axis, the Dice on the right one, both over the steps.

import { h, svg } from "./dom.js";

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [720, 260, 46, 46, 14, 34];

export function curves({ loss, dice, steps, followed }) {
  const last = Math.max(steps, ...loss.map(([step]) => step), 1);
  const most = Math.max(0.1, ...loss.map(([, value]) => value)) * 1.05;
  const x = (step) => LEFT + (step / last) * (WIDTH - LEFT - RIGHT);
  const y = (value, top) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
  const line = (points, top) => points.map(([step, value], n) => `${n ? "L" : "M"}${x(step).toFixed(1)} ${y(value, top).toFixed(1)}`).join("");
  const text = (at, to, content, anchor, kind = "") => svg("text", { x: at, y: to, "text-anchor": anchor, class: kind }, content);
  const grid = [0, 0.25, 0.5, 0.75, 1].map((share) => {
    const height = y(share, 1);
    return [
      svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: height, y2: height, class: "grid-line" }),
      text(LEFT - 8, height + 4, (share * most).toFixed(2), "end", "loss-text"),
      text(WIDTH - RIGHT + 8, height + 4, share.toFixed(2), "start", "dice-text"),
    ];
  });
  const best = dice.length ? dice.at(-1)[1].toFixed(3) : "none yet";
  return h(
    "figure",
    { class: "curves" },
    svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `Loss ${loss.at(-1)?.[1].toFixed(3) ?? "none yet"}, Dice ${best}, over ${last} steps` },
      grid,
      text(LEFT, HEIGHT - 10, "0", "middle"),
      text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "steps", "middle"),
      text(WIDTH - RIGHT, HEIGHT - 10, String(last), "middle"),
      svg("path", { d: line(loss, most), class: "loss-line" }),
      svg("path", { d: line(dice, 1), class: "dice-line" }),
      dice.map(([step, value]) => svg("circle", { cx: x(step), cy: y(value, 1), r: 3, class: "dice-dot" })),
    ),
    h("figcaption", {}, h("span", { class: "key loss" }, "loss"), h("span", { class: "key dice" }, `Dice on ${followed}`)),
  );
}
