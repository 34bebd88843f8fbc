// What is painted with; it stays from case to case.

export const TOOLS = [
  { name: "brush", text: "Brush", key: "b" },
  { name: "eraser", text: "Eraser", key: "e" },
  { name: "fill", text: "Fill", key: "f" },
  { name: "polygon", text: "Polygon", key: "p" },
  { name: "window", text: "Window", key: "w" },
  { name: "pan", text: "Move", key: "g" },
];
export const MOST_RADIUS = 40;

/** radius: in pixels of the finer side; opacity: of the labels, 0 to 1. */
export const palette = { tool: "brush", radius: 6, label: 1, opacity: 0.4 };

/** Whether a tool changes labels. */
export const paints = (tool) => !["window", "pan"].includes(tool);

/** Whether a tool draws with a round tip. */
export const isRound = (tool) => ["brush", "eraser"].includes(tool);
