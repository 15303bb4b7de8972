/** The place of a menu or an explanation: inside the window, next to what opened it. */

const GAP = 4;
const MARGIN = 8;
const LOWEST_HEIGHT = 120;

/** The part of the window that no bar covers, as distances from its upper edge. */
function visible(): { top: number; bottom: number } {
  const rail = document.querySelector<HTMLElement>(".rail")?.getBoundingClientRect();
  const isBelow = rail && rail.width > rail.height;
  return { top: MARGIN, bottom: (isBelow ? rail.top : document.documentElement.clientHeight) - MARGIN };
}

/**
 * Place an element with a fixed position below an anchor, or above it if there is more space.
 *
 * An element that is higher than the space scrolls.
 *
 * @param end Whether it is aligned with the right edge of the anchor.
 */
export function placed(element: HTMLElement, anchor: DOMRect, end = false): void {
  const { top, bottom } = visible();
  element.style.maxHeight = "";
  const { width, height } = element.getBoundingClientRect();
  const below = bottom - anchor.bottom - GAP;
  const above = anchor.top - GAP - top;
  const isAbove = height > below && above > below;
  const space = Math.max(isAbove ? above : below, LOWEST_HEIGHT);
  const used = Math.min(height, space);
  const right = document.documentElement.clientWidth - MARGIN - width;
  const left = end ? anchor.right - width : anchor.left;
  element.style.maxHeight = `${space}px`;
  element.style.left = `${Math.max(Math.min(left, right), MARGIN)}px`;
  element.style.top = `${isAbove ? anchor.top - GAP - used : anchor.bottom + GAP}px`;
}
