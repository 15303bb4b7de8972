/** A heatmap of a number over time, in which a box can be selected by mouse, by touch and by keyboard. */

import type { JSX } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Cell, Heatmap as Data, Mark } from "../api";
import { compact, count, measured, percent, plural, shortTime } from "../format";
import type { Box } from "../predicate";
import { dark, zone } from "../settings";
import { useStore } from "../store";
import { ramp, shade } from "./colours";
import { MarkLines } from "./Marks";
import { logTicks, linearTicks, positionIn, timeTicks } from "./scale";
import { useWidth } from "./size";

/** Cells from one corner to another one, both included. */
type Area = { x0: number; y0: number; x1: number; y1: number };

type Properties = {
  data: Data;
  /** What the colour of a cell shows. */
  colour: "count" | "failures";
  /** The selected box; null if the selection, if there is one, is not a box of this heatmap. */
  box: Box | null;
  /** Whether `selected` of the cells counts a selection. */
  selecting: boolean;
  /** A heatmap of which the selected cells are highlighted. */
  highlight: Data | null;
  marks: Mark[];
  onBox: (box: Box | null) => void;
  /** Called when the pointer or the focus enters or leaves the heatmap. */
  onUse: (inUse: boolean) => void;
};

/** The steepest drag of a finger that selects: the horizontal part of the distance, divided by the vertical one. */
const STEEPEST = 0.25;

const LEFT = 60;
const BOTTOM = 24;
const TOP = 16;

export function Heatmap({
  data,
  colour,
  box,
  selecting,
  highlight,
  marks,
  onBox,
  onUse,
}: Properties): JSX.Element {
  const frame = useRef<HTMLDivElement>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  const width = useWidth(frame);
  const isDark = useStore(dark);
  useStore(zone);
  const height = width < 500 ? 220 : 300;
  const plot = { width: Math.max(width - LEFT - 8, 0), height: height - TOP - BOTTOM };
  const columns = data.columns;
  const rows = data.edges.length - 1;
  const since = Date.parse(data.since);
  const until = since + columns * data.step_s * 1000;

  const [cursor, setCursor] = useState<{ x: number; y: number } | null>(null);
  const [anchor, setAnchor] = useState<{ x: number; y: number } | null>(null);
  const dragging = useRef(false);

  const cells = useMemo(() => {
    const found = new Map<number, Cell>();
    for (const cell of data.cells) found.set(cell[1] * columns + cell[0], cell);
    return found;
  }, [data]);

  useEffect(() => {
    const element = canvas.current;
    if (!element || plot.width === 0) return;
    draw(element, data, plot, { colour, selecting, highlight });
  }, [data, plot.width, plot.height, colour, selecting, highlight, isDark]);

  // A finger that moves almost vertically scrolls the page; any other drag selects. The browser decides at the
  // first movement, which only a listener that is not passive can claim.
  const surface = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const element = surface.current;
    if (!element) return undefined;
    let start: Touch | undefined;
    let isSelecting = false;
    const begin = (event: TouchEvent) => {
      start = event.touches.length === 1 ? event.touches[0] : undefined;
      isSelecting = false;
    };
    const move = (event: TouchEvent) => {
      const touch = event.touches[0];
      if (!start || !touch) return;
      const across = Math.abs(touch.clientX - start.clientX);
      const along = Math.abs(touch.clientY - start.clientY);
      if (isSelecting || across > along * STEEPEST) {
        isSelecting = true;
        if (event.cancelable) event.preventDefault();
      }
    };
    element.addEventListener("touchstart", begin, { passive: true });
    element.addEventListener("touchmove", move, { passive: false });
    return () => {
      element.removeEventListener("touchstart", begin);
      element.removeEventListener("touchmove", move);
    };
  }, []);

  const selected = anchor && cursor ? area(anchor, cursor) : box ? areaOf(box, data) : null;

  const cellAt = (event: PointerEvent) => {
    const bounds = (event.currentTarget as HTMLElement).getBoundingClientRect();
    const x = Math.floor(((event.clientX - bounds.left) / bounds.width) * columns);
    const y = rows - 1 - Math.floor(((event.clientY - bounds.top) / bounds.height) * rows);
    return { x: clamp(x, columns), y: clamp(y, rows) };
  };

  const commit = (from: { x: number; y: number }, to: { x: number; y: number }) => {
    setAnchor(null);
    onBox(boxOf(area(from, to), data));
  };

  const down = (event: PointerEvent) => {
    if (event.button !== 0) return;
    (event.currentTarget as HTMLElement).setPointerCapture(event.pointerId);
    dragging.current = true;
    const cell = cellAt(event);
    setAnchor(cell);
    setCursor(cell);
  };

  const up = (event: PointerEvent) => {
    if (!dragging.current) return;
    dragging.current = false;
    const cell = cellAt(event);
    if (anchor && (anchor.x !== cell.x || anchor.y !== cell.y)) commit(anchor, cell);
    else {
      setAnchor(null);
      if (box) onBox(null);
    }
  };

  const press = (event: KeyboardEvent) => {
    const step = event.altKey || event.ctrlKey ? 10 : 1;
    const moves: Record<string, [number, number]> = {
      ArrowLeft: [-step, 0],
      ArrowRight: [step, 0],
      ArrowUp: [0, step],
      ArrowDown: [0, -step],
      Home: [-columns, 0],
      End: [columns, 0],
      PageUp: [0, 10],
      PageDown: [0, -10],
    };
    const move = moves[event.key];
    if (move) {
      event.preventDefault();
      const from = cursor ?? { x: columns >> 1, y: rows >> 1 };
      const next = cursor ? { x: clamp(from.x + move[0], columns), y: clamp(from.y + move[1], rows) } : from;
      if (event.shiftKey) setAnchor(anchor ?? from);
      else setAnchor(null);
      setCursor(next);
    } else if (event.key === "Enter" && anchor && cursor) {
      event.preventDefault();
      commit(anchor, cursor);
    } else if (event.key === "Escape") {
      if (anchor) setAnchor(null);
      else if (selecting) onBox(null);
    }
  };

  // With the keyboard, a box is complete when the focus moves on; another window does not end it.
  const leave = () => {
    onUse(false);
    // The reference is empty while another view replaces this one.
    if (dragging.current || !document.hasFocus() || !frame.current) return;
    setCursor(null);
    if (anchor && cursor) commit(anchor, cursor);
  };

  const cell = cursor ? cells.get(cursor.y * columns + cursor.x) : undefined;
  const description = cursor ? describe(cursor, cell, data, selecting) : "";
  const flip = cursor ? cursor.x > columns / 2 : false;

  return (
    <div class="heatmap" ref={frame} style={{ height: `${height}px` }}>
      <svg class="axes" width={width} height={height} aria-hidden="true">
        <ValueAxis data={data} height={plot.height} />
        {timeTicks(since, until, Math.max(plot.width / 80, 2)).map(({ at, label }) => {
          const x = LEFT + ((at - since) / (until - since)) * plot.width;
          return (
            <g key={at}>
              <line x1={x} x2={x} y1={TOP + plot.height} y2={TOP + plot.height + 4} />
              <text x={x} y={height - 6} text-anchor={x > width - 30 ? "end" : "middle"}>
                {label}
              </text>
            </g>
          );
        })}
      </svg>
      <div
        ref={surface}
        class="plot"
        style={{ left: `${LEFT}px`, top: `${TOP}px`, width: `${plot.width}px`, height: `${plot.height}px` }}
        tabIndex={0}
        role="application"
        aria-roledescription="heatmap"
        aria-label={`${data.measure} of ${data.over} over time, ${plural(data.count, data.over === "runs" ? "run" : "stage")}. Arrow keys move, Shift and arrow keys extend a box, Enter selects it, Escape clears it.`}
        onPointerDown={down}
        onPointerMove={(event) => setCursor(cellAt(event))}
        onPointerUp={up}
        onPointerCancel={() => {
          dragging.current = false;
          setAnchor(null);
        }}
        onPointerEnter={() => onUse(true)}
        onPointerLeave={() => {
          if (dragging.current) return;
          setCursor(null);
          onUse(false);
        }}
        onKeyDown={press}
        onFocus={() => onUse(true)}
        onBlur={leave}
      >
        <canvas ref={canvas} />
        <MarkLines marks={marks} since={since} until={until} width={plot.width} />
        {selected && <div class={`box ${anchor ? "drawing" : ""}`} style={place(selected, columns, rows)} />}
        {cursor && (
          <div
            class="cursor"
            style={place({ x0: cursor.x, x1: cursor.x, y0: cursor.y, y1: cursor.y }, columns, rows)}
          />
        )}
        {cursor && !dragging.current && (
          <div
            class="tip"
            style={{
              [flip ? "right" : "left"]:
                `${(flip ? 1 - cursor.x / columns : (cursor.x + 1) / columns) * 100}%`,
              [cursor.y > rows / 2 ? "top" : "bottom"]:
                `${(cursor.y > rows / 2 ? 1 - cursor.y / rows : (cursor.y + 1) / rows) * 100}%`,
            }}
          >
            {anchor ? (
              <div>Enter selects the box, Escape clears it</div>
            ) : (
              description.split("\n").map((line) => <div key={line}>{line}</div>)
            )}
          </div>
        )}
      </div>
      <div class="unseen" aria-live="polite">
        {description.replaceAll("\n", ", ")}
      </div>
    </div>
  );
}

function ValueAxis({ data, height }: { data: Data; height: number }): JSX.Element {
  const { edges, log, measure } = data;
  const rows = edges.length - 1;
  const low = edges[0] ?? 0;
  const high = edges[rows] ?? 1;
  const candidates = log ? logTicks(low, high, measure.endsWith("_ms")) : linearTicks(low, high, height / 40);
  const taken: number[] = [];
  const ticks: { y: number; value: number }[] = [];
  for (const value of candidates) {
    const y = TOP + height - (positionIn(edges, value, log) / rows) * height;
    if (taken.some((each) => Math.abs(each - y) < 24)) continue;
    taken.push(y);
    ticks.push({ y, value });
  }
  return (
    <>
      {ticks.map(({ y, value }) => (
        <g key={value}>
          <line x1={LEFT - 4} x2={LEFT} y1={y} y2={y} />
          <text x={LEFT - 8} y={y + 4} text-anchor="end">
            {measured(measure, value)}
          </text>
        </g>
      ))}
    </>
  );
}

function clamp(index: number, length: number): number {
  return Math.min(Math.max(index, 0), length - 1);
}

function area(one: { x: number; y: number }, other: { x: number; y: number }): Area {
  return {
    x0: Math.min(one.x, other.x),
    x1: Math.max(one.x, other.x),
    y0: Math.min(one.y, other.y),
    y1: Math.max(one.y, other.y),
  };
}

function place({ x0, x1, y0, y1 }: Area, columns: number, rows: number): Record<string, string> {
  return {
    left: `${(x0 / columns) * 100}%`,
    width: `${((x1 + 1 - x0) / columns) * 100}%`,
    bottom: `${(y0 / rows) * 100}%`,
    height: `${((y1 + 1 - y0) / rows) * 100}%`,
  };
}

function boxOf({ x0, x1, y0, y1 }: Area, data: Data): Box {
  const since = Date.parse(data.since);
  const at = (x: number) => new Date(since + x * data.step_s * 1000).toISOString();
  const last = data.edges.length - 2;
  return {
    from: at(x0),
    to: at(x1 + 1),
    low: data.edges[y0] as number,
    high: data.edges[y1 + 1] as number,
    closed: y1 === last,
  };
}

function areaOf(box: Box, data: Data): Area | null {
  const step = data.step_s * 1000;
  const since = Date.parse(data.since);
  const rows = data.edges.length - 1;
  // The edges of an earlier response need not be edges of this one.
  const x0 = Math.round((Date.parse(box.from) - since) / step);
  const x1 = Math.round((Date.parse(box.to) - since) / step) - 1;
  const y0 = Math.round(positionIn(data.edges, box.low, data.log));
  const y1 = Math.round(positionIn(data.edges, box.high, data.log)) - 1;
  if (x1 < 0 || x0 >= data.columns) return null;
  return {
    x0: clamp(x0, data.columns),
    x1: clamp(Math.max(x1, x0), data.columns),
    y0: clamp(y0, rows),
    y1: clamp(Math.max(y1, y0), rows),
  };
}

function describe(
  { x, y }: { x: number; y: number },
  cell: Cell | undefined,
  data: Data,
  selecting: boolean,
): string {
  const from = Date.parse(data.since) + x * data.step_s * 1000;
  const low = measured(data.measure, data.edges[y]);
  const high = measured(data.measure, data.edges[y + 1]);
  const lines = [`${shortTime(from, data.step_s < 60 ? "second" : "minute")}, ${low} to ${high}`];
  if (!cell) lines.push(`no ${data.over}`);
  else {
    lines.push(
      `${data.estimated ? "≈ " : ""}${plural(cell[2], data.over === "runs" ? "run" : "stage")}, ${count(cell[3])} failed (${percent(cell[3] / cell[2])})`,
    );
    if (selecting) lines.push(`${count(cell[4])} selected`);
  }
  return lines.join("\n");
}

type Look = { colour: "count" | "failures"; selecting: boolean; highlight: Data | null };

function draw(
  canvas: HTMLCanvasElement,
  data: Data,
  plot: { width: number; height: number },
  look: Look,
): void {
  const scale = devicePixelRatio || 1;
  canvas.width = Math.round(plot.width * scale);
  canvas.height = Math.round(plot.height * scale);
  canvas.style.width = `${plot.width}px`;
  canvas.style.height = `${plot.height}px`;
  const context = canvas.getContext("2d");
  if (!context) return;
  const rows = data.edges.length - 1;
  const most = data.cells.reduce((found, cell) => Math.max(found, cell[2]), 1);
  const base = ramp("heat-low", "heat-high");
  const chosen = ramp("select-low", "select-high");
  const marking = ramp("mark-low", "mark-high");
  const failing = ramp("fail-low", "fail-high");
  // Cells begin and end at whole pixels; otherwise thin lines appear between them.
  const gap = plot.width / data.columns > 5 ? 1 : 0;
  const xs = Array.from({ length: data.columns + 1 }, (_, x) =>
    Math.round((x / data.columns) * canvas.width),
  );
  const ys = Array.from({ length: rows + 1 }, (_, y) => Math.round((1 - y / rows) * canvas.height));
  const fill = (x: number, y: number, style: string) => {
    const left = xs[x] as number;
    const top = ys[y + 1] as number;
    context.fillStyle = style;
    context.fillRect(left, top, (xs[x + 1] as number) - left - gap, (ys[y] as number) - top - gap);
  };
  const highlighted = look.highlight
    ? new Map(look.highlight.cells.map((cell) => [cell[1] * data.columns + cell[0], cell[4]]))
    : null;
  for (const [x, y, rowsHere, failed, selected] of data.cells) {
    const marked = highlighted?.get(y * data.columns + x) ?? 0;
    if (marked > 0) fill(x, y, shade(marking, marked, most));
    else if (look.selecting && selected > 0) fill(x, y, shade(chosen, selected, most));
    else if (look.colour === "failures" && failed > 0) {
      // A darker red for a higher share; one failure among many rows stays visible.
      fill(x, y, failing[Math.round((failed / rowsHere) * (failing.length - 1))] as string);
    } else if (highlighted || look.selecting || look.colour === "failures") {
      context.globalAlpha = 0.5;
      fill(x, y, shade(base, rowsHere, most));
      context.globalAlpha = 1;
    } else fill(x, y, shade(base, rowsHere, most));
  }
}

/** The legend of the colours. */
export function HeatmapLegend({
  data,
  colour,
  selecting,
  highlighting,
}: {
  data: Data;
  colour: "count" | "failures";
  selecting: boolean;
  /** Whether rows with a condition are highlighted. */
  highlighting: boolean;
}): JSX.Element {
  useStore(dark);
  const most = data.cells.reduce((found, cell) => Math.max(found, cell[2]), 1);
  const noun = data.over === "runs" ? "runs" : "stages";
  return (
    <span class="legend">
      {colour === "failures" ? (
        <>
          <Ramp low="fail-low" high="fail-high" /> failure rate, 0 to 100%; grey without failures
        </>
      ) : (
        <>
          1 <Ramp low="heat-low" high="heat-high" /> {compact(most)} {noun} per cell, log scale
        </>
      )}
      {selecting && (
        <span class="nowrap">
          <Ramp low="select-low" high="select-high" /> selection
        </span>
      )}
      {selecting && (
        <span class={`nowrap ${highlighting ? "" : "muted"}`}>
          <Ramp low="mark-low" high="mark-high" /> the condition under the pointer
        </span>
      )}
    </span>
  );
}

function Ramp({ low, high }: { low: string; high: string }): JSX.Element {
  return (
    <span class="ramp" aria-hidden="true">
      {ramp(low, high, 8).map((colour, index) => (
        <i key={index} style={{ background: colour }} />
      ))}
    </span>
  );
}
