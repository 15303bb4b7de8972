/** Vertical marks in a chart over time: new versions, new errors and alerts, with their labels. */

import type { JSX } from "preact";
import type { Mark } from "../api";
import { shortTime } from "../format";

const KINDS: Record<Mark["kind"], string> = {
  version: "new version",
  error: "new error",
  alert: "alert",
};

/** Width of a character of a label, and the largest width of a label, in pixels. */
const CHARACTER = 6.6;
const WIDEST = 128;
const NARROWEST = 28;

/** Number of marks that the legend names. */
const NAMED = 6;

type Placed = { mark: Mark; x: number; room: number; flip: boolean };

/** Return the position of each visible mark, and the space for its label; 0 if there is none. */
function place(marks: Mark[], since: number, until: number, width: number): Placed[] {
  const at = (mark: Mark) => ((Date.parse(mark.at) - since) / (until - since)) * width;
  const visible = marks
    .map((mark) => ({ mark, x: at(mark) }))
    .filter(({ x }) => x >= 0 && x <= width)
    .sort((one, other) => one.x - other.x);
  let taken = 0;
  return visible.map(({ mark, x }, index) => {
    const next = visible[index + 1]?.x ?? width;
    const wanted = Math.min(mark.label.length * CHARACTER + 8, WIDEST);
    const right = next - x;
    const left = x - taken;
    const flip = right < wanted && left > right;
    const room = Math.min(flip ? left : right, wanted);
    const shown = room >= Math.min(wanted, NARROWEST) ? room : 0;
    taken = shown && !flip ? x + shown : x;
    return { mark, x, room: shown, flip };
  });
}

function described(mark: Mark): string {
  const at = shortTime(mark.at, "second");
  const until = mark.until ? ` to ${shortTime(mark.until, "second")}` : "";
  return `${KINDS[mark.kind]}: ${mark.label}, ${mark.kind === "alert" ? "from" : "first at"} ${at}${until}`;
}

type Properties = { marks: Mark[]; since: number; until: number; width: number };

/** The lines of the marks, for an element that has the size of the plot. */
export function MarkLines({ marks, since, until, width }: Properties): JSX.Element {
  return (
    <>
      {place(marks, since, until, width).map(({ mark, x, room, flip }) => (
        <div
          key={mark.kind + mark.label + mark.at}
          class={`vmark ${mark.kind}`}
          style={{ left: `${x}px` }}
          title={described(mark)}
        >
          {room > 0 && (
            <span class={flip ? "flip" : ""} style={{ maxWidth: `${room}px` }}>
              {mark.label}
            </span>
          )}
        </div>
      ))}
    </>
  );
}

/** The meaning of the lines, and the names of the marks. */
export function MarkLegend({ marks, since, until }: Omit<Properties, "width">): JSX.Element | null {
  const visible = place(marks, since, until, 1).map(({ mark }) => mark);
  const kinds = (Object.keys(KINDS) as Mark["kind"][]).filter((kind) =>
    visible.some((mark) => mark.kind === kind),
  );
  if (kinds.length === 0) return null;
  return (
    <>
      {kinds.map((kind) => {
        const named = visible.filter((mark) => mark.kind === kind);
        const labels = named
          .slice(0, NAMED)
          .map((mark) => `${mark.label} (${shortTime(mark.at)})`)
          .join(", ");
        return (
          <span key={kind} class="mark-key">
            <i class={`vmark-key ${kind}`} aria-hidden="true" />
            <span>
              {KINDS[kind]}: <bdi>{labels}</bdi>
              {named.length > NAMED && ` and ${named.length - NAMED} more`}
            </span>
          </span>
        );
      })}
    </>
  );
}
