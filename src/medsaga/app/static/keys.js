// The keys of the page, as the help shows them. What they do is in `keyboard.js` and `results.js`.

export const KEYS = [
  [
    "Tools",
    [
      ["B", "brush"],
      ["E", "eraser (or hold Ctrl with the brush)"],
      ["F", "fill a closed outline"],
      ["P", "polygon; Enter or double-click closes it, Esc drops it"],
      ["W", "window and level by dragging (or the right button)"],
      ["G", "move the image (or hold Shift)"],
      ["[ / ]", "smaller or larger brush"],
      ["1 / … / 9", "label to paint"],
    ],
  ],
  [
    "Painting by keys",
    [
      ["Tab", "to the image"],
      ["← / ↑ / → / ↓", "move the cursor; Shift: ten pixels"],
      ["Space", "paint, erase, fill or set a corner there"],
      ["Ctrl+Z", "undo"],
      ["Ctrl+Shift+Z", "redo"],
    ],
  ],
  [
    "Volumes",
    [
      ["PgUp / PgDn", "next or previous slice (or the wheel, or . and ,)"],
      ["C", "copy to the next slice; Shift: to the previous one"],
      ["I", "interpolate between outlined slices"],
      ["V", "another plane"],
    ],
  ],
  [
    "View and cases",
    [
      ["+ / −", "zoom (or Ctrl and the wheel)"],
      ["R", "whole image again"],
      ["O", "more opaque labels; Shift: less"],
      ["H", "hide or show labels"],
      ["N", "next case; Shift: previous"],
      ["Enter", "finish the case"],
    ],
  ],
  [
    "Results",
    [
      ["↑ / ↓", "another case"],
      ["A", "accept the prediction"],
      ["M", "mend it"],
    ],
  ],
];
