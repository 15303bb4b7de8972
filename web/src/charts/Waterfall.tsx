/** The waterfall of a run: one row for each stage, one bar for each attempt. */

import type { JSX } from "preact";
import { useRef } from "preact/hooks";
import type { Typical } from "../api";
import { duration } from "../format";
import { Info } from "../parts/Info";
import { kindOf, Mark } from "../parts/Mark";
import { Link, viewAddress } from "../router";
import type { Row, Segment, Waterfall as Layout } from "../waterfall";
import { linearTicks } from "./scale";
import { useWidth } from "./size";

/** Width of a label of the axis, and the smallest distance of two tick marks, in pixels. */
const LABEL = 44;
const TICK = 64;

type Properties = {
  layout: Layout;
  /** The end of the time axis, if it is shared with another run. */
  to?: number;
  typical: Record<string, Typical>;
  selected: string | null;
  onSelect: (name: string) => void;
};

export function Waterfall({ layout, to = layout.to, typical, selected, onSelect }: Properties): JSX.Element {
  const { rows, from } = layout;
  const span = to - from || 1;
  const share = (at: number) => ((at - from) / span) * 100;
  const axis = useRef<HTMLSpanElement>(null);
  const width = useWidth(axis);
  const ticks = linearTicks(from, to, Math.min(Math.max(Math.floor(width / TICK), 1), 8));
  return (
    <div class={`waterfall ${rows.length > 24 ? "long" : ""}`}>
      <div class="wf-row wf-axis" aria-hidden="true">
        <span class="wf-name" />
        <span class="wf-track" ref={axis}>
          {ticks
            .filter((tick) => (share(tick) / 100) * width <= width - LABEL)
            .map((tick) => (
              <span key={tick} class="tick" style={{ left: `${share(tick)}%` }}>
                {tick === 0 ? "0" : duration(tick)}
              </span>
            ))}
        </span>
        <span class="wf-time" />
      </div>
      {rows.map((row) =>
        row.child !== null ? (
          <Link key={row.child} to={viewAddress("run", { id: row.child, stage: "" })} class="wf-row child">
            <Cells row={row} ticks={ticks} share={share} typical={undefined} />
          </Link>
        ) : (
          <button
            type="button"
            key={row.name}
            class={`wf-row ${row.critical ? "critical" : ""}`}
            aria-pressed={selected === row.name}
            onClick={() => onSelect(row.name)}
          >
            <Cells row={row} ticks={ticks} share={share} typical={typical[row.name]} />
          </button>
        ),
      )}
    </div>
  );
}

type CellProperties = {
  row: Row;
  ticks: number[];
  share: (at: number) => number;
  typical: Typical | undefined;
};

function Cells({ row, ticks, share, typical }: CellProperties): JSX.Element {
  const place = notePlace(row, share);
  return (
    <>
      <span class="wf-name" title={row.name}>
        {row.depth > 0 && <span class="muted">└ </span>}
        <Mark status={row.status} word={false} />
        <bdi class="clip">{row.name}</bdi>
      </span>
      <span class="wf-track" aria-hidden="true">
        {ticks.map((tick) => (
          <i key={tick} class="grid" style={{ left: `${share(tick)}%` }} />
        ))}
        {row.segments.map((segment, index) => (
          <Piece key={index} segment={segment} share={share} />
        ))}
        {row.start !== null && typical && typical.p50_ms !== null && row.status !== "SKIP" && (
          <>
            <TypicalMark
              at={row.start + typical.p50_ms}
              share={share}
              label={`p50 ${duration(typical.p50_ms)}`}
              kind="p50"
            />
            {typical.p95_ms !== null && (
              <TypicalMark
                at={row.start + typical.p95_ms}
                share={share}
                label={`p95 ${duration(typical.p95_ms)}`}
                kind="p95"
              />
            )}
          </>
        )}
        {row.note && (
          <span
            class={`wf-note ${place.inside ? "inside" : ""} ${kindOf(row.status) === "fail" ? "is-fail" : "muted"}`}
            style={place.style}
          >
            <bdi>{row.note}</bdi>
          </span>
        )}
      </span>
      <span class="wf-time">
        {row.attempts > 1 && <span class="muted small">{row.attempts} attempts </span>}
        {row.duration === null ? "–" : duration(row.duration)}
        <span class="unseen">{describe(row, typical)}</span>
      </span>
    </>
  );
}

/** Where the note of a row has space: after its bars, before them, or inside the last one. */
function notePlace(
  row: Row,
  share: (at: number) => number,
): { inside: boolean; style: Record<string, string> } {
  const start = share(row.segments[0]?.from ?? 0);
  const end = share(row.segments[row.segments.length - 1]?.to ?? 0);
  if (row.segments.length === 0 || 100 - end >= 30 || (100 - end >= start && 100 - end > 15))
    return { inside: false, style: { left: `${end}%`, maxWidth: `${100 - end}%` } };
  if (start >= 30) return { inside: false, style: { right: `${100 - start}%`, maxWidth: `${start}%` } };
  return { inside: true, style: { right: `${100 - end}%`, maxWidth: `${end - start}%` } };
}

function Piece({ segment, share }: { segment: Segment; share: (at: number) => number }): JSX.Element {
  const { kind, from, to, status, attempt } = segment;
  const names = {
    queue: "queued",
    run: "ran",
    wait: "waited for a retry",
    first: "waited for the first chunk",
    stream: "streamed",
  };
  return (
    <i
      class={`seg ${kind} ${status ? `is-${kindOf(status)}` : ""}`}
      style={{ left: `${share(from)}%`, width: `${Math.max(share(to) - share(from), 0)}%` }}
      title={`${names[kind]} for ${duration(to - from)}${attempt > 1 ? ` (attempt ${attempt})` : ""}`}
    />
  );
}

function TypicalMark({
  at,
  share,
  label,
  kind,
}: {
  at: number;
  share: (at: number) => number;
  label: string;
  kind: string;
}): JSX.Element | null {
  const left = share(at);
  return left > 100 ? null : (
    <i class={`typical ${kind}`} style={{ left: `${left}%` }} title={`typical: ${label}`} />
  );
}

/** What the bars of a row show, for screen readers. */
function describe(row: Row, typical: Typical | undefined): string {
  const parts = [
    row.child && "child run",
    typical?.p50_ms != null && `typical ${duration(typical.p50_ms)}`,
    row.critical && "on the critical path",
    row.note,
  ];
  return parts.filter(Boolean).join(", ");
}

export function WaterfallLegend({ typical }: { typical: boolean }): JSX.Element {
  const piece = (kind: string, text: string) => (
    <span class="key">
      <i class={`seg ${kind}`} aria-hidden="true" /> {text}
    </span>
  );
  return (
    <span class="wf-legend small">
      {piece("queue", "queued")}
      {piece("run is-ok", "ran")}
      {piece("run is-retry", "retried")}
      {piece("wait", "retry delay")}
      {piece("first is-ok", "waiting for the first chunk")}
      {piece("stream is-ok", "streaming")}
      {piece("run is-fail", "failed")}
      {piece("run is-cancel", "cancelled")}
      <span class="key">
        <i class="crit" aria-hidden="true" />{" "}
        <Info text="The chain of stages that determined how long the run took. A faster stage outside of it does not make the run faster.">
          critical path
        </Info>
      </span>
      {typical && (
        <span class="key">
          <i class="typical p50" aria-hidden="true" /> p50 <i class="typical p95" aria-hidden="true" /> p95 of
          other runs
        </span>
      )}
    </span>
  );
}
