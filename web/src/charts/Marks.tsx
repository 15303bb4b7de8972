/** Vertical marks in a chart over time: onsets, new versions, new errors and alerts, with their labels. */

import type { JSX } from "preact";
import type { Mark } from "../api";
import { shortTime } from "../format";

export const MARK_KINDS: Record<Mark["kind"], string> = {
  onset: "onset",
  alert: "alert",
  version: "new version",
  error: "new error",
};

const KINDS = Object.keys(MARK_KINDS) as Mark["kind"][];

/** Width of a character of a label, the smallest and the largest width of a label, in pixels. */
const CHARACTER = 6.8;
const NARROWEST = 64;
const WIDEST = 160;

/** Width of the number of other marks. */
const MORE = 28;

const GAP = 8;

/** Number of marks that the legend names. */
const NAMED = 6;

/** The text above a mark; the findings of an onset are in its tooltip. */
function shortLabel({ kind, label }: Mark): string {
  return kind === "onset" ? MARK_KINDS.onset : label;
}

type Placed = { mark: Mark; x: number };

/** The label of a mark, and the less important marks near it, whose labels have no space. */
type Label = { mark: Mark; others: Mark[]; left: number; width: number };

/** Return the visible marks with their positions, from left to right. */
function place(marks: Mark[], since: number, until: number, width: number): Placed[] {
  const at = (mark: Mark) => ((Date.parse(mark.at) - since) / (until - since)) * width;
  return marks
    .map((mark) => ({ mark, x: at(mark) }))
    .filter(({ x }) => x >= 0 && x <= width)
    .sort((one, other) => one.x - other.x);
}

/** Return labels that do not overlap, each above its own mark. The most important marks come first. */
function labelled(placed: Placed[], width: number): Label[] {
  const ordered = [...placed].sort(
    (one, other) => KINDS.indexOf(one.mark.kind) - KINDS.indexOf(other.mark.kind) || one.x - other.x,
  );
  const more = placed.length > 1 ? MORE : 0;
  const labels: Label[] = [];
  for (const { mark, x } of ordered) {
    const wanted = Math.min(shortLabel(mark).length * CHARACTER + GAP, WIDEST);
    // A label that would leave the plot begins before its mark.
    const end = Math.min(width, ...labels.filter((each) => each.left >= x).map((each) => each.left - GAP));
    const start = Math.max(0, ...labels.filter((each) => each.left < x).map((each) => each.left + each.width + GAP));
    const left = Math.max(Math.min(x, end - wanted - more), start);
    const room = Math.min(wanted + more, end - left);
    if (left <= x && room >= Math.min(wanted + more, NARROWEST)) {
      labels.push({ mark, others: [], left, width: room });
    } else {
      const distance = (label: Label) => Math.max(label.left - x, x - label.left - label.width, 0);
      const nearest = [...labels].sort((one, other) => distance(one) - distance(other))[0];
      nearest?.others.push(mark);
    }
  }
  return labels;
}

function described(mark: Mark): string {
  const at = shortTime(mark.at, "second");
  const until = mark.until ? ` to ${shortTime(mark.until, "second")}` : "";
  const when = { alert: "from", onset: "since", version: "first at", error: "first at" }[mark.kind];
  return `${MARK_KINDS[mark.kind]}: ${mark.label}, ${when} ${at}${until}`;
}

type Properties = { marks: Mark[]; since: number; until: number; width: number };

/** The lines of the marks, for an element that has the size of the plot. */
export function MarkLines({ marks, since, until, width }: Properties): JSX.Element {
  const placed = place(marks, since, until, width);
  return (
    <>
      {placed.map(({ mark, x }) => (
        <div
          key={mark.kind + mark.label + mark.at}
          class={`vmark ${mark.kind}`}
          style={{ left: `${x}px` }}
          title={described(mark)}
        />
      ))}
      {labelled(placed, width).map(({ mark, others, left, width: room }) => (
        <div
          key={mark.kind + mark.label + mark.at}
          class="vmark-label"
          style={{ left: `${left}px`, maxWidth: `${room}px` }}
          title={[mark, ...others].map(described).join("\n")}
        >
          <bdi>{shortLabel(mark)}</bdi>
          {others.length > 0 && <span class="muted"> +{others.length}</span>}
        </div>
      ))}
    </>
  );
}

/** The meaning of the lines, and the names of the marks. */
export function MarkLegend({ marks, since, until }: Omit<Properties, "width">): JSX.Element | null {
  const visible = place(marks, since, until, 1).map(({ mark }) => mark);
  const kinds = KINDS.filter((kind) => visible.some((mark) => mark.kind === kind));
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
              {MARK_KINDS[kind]}: <bdi>{labels}</bdi>
              {named.length > NAMED && ` and ${named.length - NAMED} more`}
            </span>
          </span>
        );
      })}
    </>
  );
}
