// Strokes and other changes on their way to the disk, one after the other, also when the view they were made in is gone.

let last = Promise.resolve();

/** Send by a function, after all that was sent before has been answered. */
export function inTurn(send) {
  const sent = last.then(send);
  last = sent.catch(() => {});
  return sent;
}

/** Wait until what has been changed so far is on the disk, or was refused. */
export const saved = () => last;
