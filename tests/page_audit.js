// What is wrong with the controls and texts that a page shows: names, contrast (WCAG 2.2, 1.4.3), headings.
() => {
  const problems = [];
  const named = (e) => e.getAttribute("aria-label") || e.textContent.trim() || e.title || e.labels?.length || e.alt !== undefined;
  for (const e of document.querySelectorAll("button, a[href], input, select, canvas, img, dialog, nav, aside"))
    if (!(e.matches("input, select") ? e.getAttribute("aria-label") || e.labels.length : e.matches("img") ? e.hasAttribute("alt") : named(e)))
      problems.push("no name: " + e.outerHTML.slice(0, 120));
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  if (new Set(ids).size < ids.length) problems.push("an id twice");
  const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number); return [r, g, b, a]; };
  const light = (c) => { const [r, g, b] = c.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] > 0.99) return c; } return [0, 0, 0, 1]; };
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true }) || e.matches(":disabled, :disabled *, svg text, option")) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color).slice(0, 3)), light(ground(e).slice(0, 3))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) problems.push(`contrast ${((a + 0.05) / (b + 0.05)).toFixed(2)}: ${e.outerHTML.slice(0, 120)}`);
  }
  const levels = [...document.querySelectorAll("h1")].length;
  if (levels !== 1) problems.push(`${levels} headings of the first level`);
  return problems;
}
