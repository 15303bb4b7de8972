/** Lines over time. */

import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import type { Mark } from "../api";
import { shortTime } from "../format";
import { Middle } from "../parts/Middle";
import { Link } from "../router";
import { dark, zone } from "../settings";
import { useStore } from "../store";
import { token } from "./colours";
import { MarkLines } from "./Marks";
import { timeTicks } from "./scale";
import { useWidth } from "./size";

export type Line = {
  label: string;
  values: (number | null)[];
  /** Name of a token. */
  colour: string;
  dashed?: boolean;
  /** Whether the area below the line is filled. */
  filled?: boolean;
  to?: string | undefined;
};

type Properties = {
  /** What the chart shows, for screen readers. */
  name: string;
  /** A text above the chart; the panel may have a title already. */
  title: string;
  since: string;
  step_s: number;
  lines: Line[];
  marks: Mark[];
  format: (value: number | null | undefined) => string;
  height?: number;
  /** The highest value that the axis always shows. */
  top?: number;
  /** Whether the first step is incomplete, because the time range starts within it, and the last one. */
  incomplete: [first: boolean, last: boolean];
  /** Called with the time range that was dragged. */
  onRange: (since: string, until: string) => void;
  /** Called with the time step of a point that was clicked. */
  onStep: (since: string, until: string) => void;
};

const SYNC = uPlot.sync("time");

export function LineChart({
  name,
  title,
  since,
  step_s,
  lines,
  marks,
  format,
  height = 160,
  top,
  incomplete,
  onRange,
  onStep,
}: Properties): JSX.Element {
  const frame = useRef<HTMLDivElement>(null);
  const target = useRef<HTMLDivElement>(null);
  const chart = useRef<uPlot | null>(null);
  const width = useWidth(frame);
  const isDark = useStore(dark);
  const times = useStore(zone);
  const [index, setIndex] = useState<number | null>(null);
  const [plot, setPlot] = useState({ left: 0, top: 0, width: 0, height: 0 });
  const calls = useRef({ onRange, onStep });
  calls.current = { onRange, onStep };
  const start = Date.parse(since) / 1000;
  const openStep = (step: number) => {
    const at = (start + step * step_s) * 1000;
    calls.current.onStep(new Date(at).toISOString(), new Date(at + step_s * 1000).toISOString());
  };
  const steps = lines[0]?.values.length ?? 0;
  const [isFirstIncomplete, isLastIncomplete] = incomplete;
  const isIncomplete = (step: number) =>
    (isFirstIncomplete && step === 0) || (isLastIncomplete && step === steps - 1);
  // The horizontal axis ends at the start of the last step.
  const from = start * 1000;
  const to = (start + Math.max(steps - 1, 1) * step_s) * 1000;

  useEffect(() => {
    if (!target.current || width === 0 || steps === 0) return undefined;
    const axis = {
      stroke: token("muted"),
      font: `12px ${token("font")}`,
      ticks: { stroke: token("line"), size: 4 },
      grid: { stroke: token("line"), width: 1 },
    };
    const options: uPlot.Options = {
      width,
      height,
      // The label of the last tick mark can be at the end of the axis.
      padding: [marks.length ? 20 : 8, 26, 0, 0],
      legend: { show: false },
      cursor: {
        sync: { key: SYNC.key },
        drag: { x: true, y: false, setScale: false },
        points: { size: 6 },
        y: false,
      },
      scales: {
        x: { time: false },
        y: { range: (_, low, high) => [Math.min(0, low ?? 0), Math.max(high ?? 1, top ?? 0) * 1.05 || 1] },
      },
      axes: [
        {
          ...axis,
          size: 24,
          grid: { show: false },
          splits: (self) => ticksOf(self).map(({ at }) => at / 1000),
          values: (self) => ticksOf(self).map(({ label }) => label),
        },
        { ...axis, size: 64, values: (_, values) => values.map((value) => format(value)) },
      ],
      series: [
        {},
        ...lines.map((line) => ({
          stroke: token(line.colour),
          width: line.dashed ? 1 : 1.5,
          dash: line.dashed ? [4, 4] : [],
          ...(line.filled ? { fill: `${token(line.colour)}22` } : {}),
          // A value between two gaps has no line, and needs a point.
          points: { show: false, filter: lonely, size: 4, fill: token(line.colour) },
        })),
        // An incomplete step would look like a drop or a spike.
        ...lines.map((line) => ({
          stroke: token(line.colour),
          width: line.dashed ? 1 : 1.5,
          dash: [2, 3],
          points: { show: false, filter: lonely, size: 4, fill: token(line.colour) },
        })),
      ],
      hooks: {
        ready: [
          (self) => {
            let pressedAt = 0;
            self.over.addEventListener("mousedown", (event) => (pressedAt = event.clientX));
            self.over.addEventListener("click", (event) => {
              const step = self.cursor.idx;
              if (Math.abs(event.clientX - pressedAt) < 4 && typeof step === "number") openStep(step);
            });
          },
        ],
        drawClear: [(self) => drawAlerts(self, marks)],
        // The marks have labels and tooltips, so they are elements.
        setSize: [(self) => setPlot(plotOf(self))],
        setCursor: [(self) => setIndex(self.cursor.idx ?? null)],
        setSelect: [
          (self) => {
            if (self.select.width < 4) return;
            const from = self.posToVal(self.select.left, "x");
            const to = self.posToVal(self.select.left + self.select.width, "x");
            self.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
            calls.current.onRange(new Date(from * 1000).toISOString(), new Date(to * 1000).toISOString());
          },
        ],
      },
    };
    const data = [
      Array.from({ length: steps }, (_, step) => start + step * step_s),
      ...lines.map((line) => line.values.map((each, step) => (isIncomplete(step) ? null : each))),
      ...lines.map((line) =>
        line.values.map((each, step) =>
          isIncomplete(step) || isIncomplete(step - 1) || isIncomplete(step + 1) ? each : null,
        ),
      ),
    ];
    for (const [at, values] of data.entries()) {
      const points = options.series[at]?.points;
      if (at > 0 && points) points.show = values.some((_, each) => isLonely(values, each));
    }
    chart.current = new uPlot(options, data as uPlot.AlignedData, target.current);
    setPlot(plotOf(chart.current));
    return () => {
      chart.current?.destroy();
      chart.current = null;
      setIndex(null);
    };
  }, [width, height, isDark, times, lines, marks, start, step_s, isFirstIncomplete, isLastIncomplete]);

  const press = (event: KeyboardEvent) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step !== undefined) {
      event.preventDefault();
      const next = Math.min(Math.max((index ?? (step > 0 ? -1 : steps)) + step, 0), steps - 1);
      const left = chart.current?.valToPos(start + next * step_s, "x") ?? 0;
      chart.current?.setCursor({ left, top: 10 });
      setIndex(next);
    } else if (event.key === "Enter" && index !== null) {
      openStep(index);
    }
  };

  const at =
    index === null ? null : shortTime((start + index * step_s) * 1000, step_s < 60 ? "second" : "minute");
  const shownAt = index ?? lastIndex(lines);
  return (
    <figure class="line-chart" ref={frame}>
      <figcaption>
        {title && <strong>{title}</strong>}
        <span class="muted">
          {at ?? ""}
          {index !== null && isIncomplete(index) && ", incomplete interval"}
        </span>
        {(lines.length > 1 || lines[0]?.to || at ? lines : []).map((line) => (
          <span key={line.label} class="key">
            <svg width="12" height="12" aria-hidden="true">
              <line
                x1="0"
                x2="12"
                y1="6"
                y2="6"
                stroke={`var(--${line.colour})`}
                stroke-width="2"
                stroke-dasharray={line.dashed ? "3 2" : ""}
              />
            </svg>
            {line.to ? (
              <Link to={line.to} title={`Only ${line.label}`}>
                <Middle text={line.label} title={false} />
              </Link>
            ) : (
              <Middle text={line.label} />
            )}
            <b>{at ? format(line.values[shownAt]) : ""}</b>
          </span>
        ))}
        {(isFirstIncomplete || isLastIncomplete) && (
          <span class="incomplete muted" title={describeIncomplete(incomplete)}>
            <svg width="12" height="12" aria-hidden="true">
              <line x1="0" x2="12" y1="6" y2="6" stroke="currentColor" stroke-width="2" stroke-dasharray="2 2" />
            </svg>
            incomplete interval
          </span>
        )}
      </figcaption>
      <div
        ref={target}
        tabIndex={0}
        role="application"
        aria-roledescription="chart"
        aria-label={`${name} over time. ${lines.map((line) => `${line.label}: last ${format(lastValue(line.values))}`).join(", ")}. Arrow keys read the values; Enter opens the rows.`}
        style={{ height: `${height}px` }}
        onKeyDown={press}
      />
      {plot.width > 0 && (
        <div
          class="marks"
          style={{
            left: `${plot.left}px`,
            width: `${plot.width}px`,
            height: `${plot.height}px`,
            bottom: `${height - plot.top - plot.height}px`,
          }}
        >
          <MarkLines marks={marks} since={from} until={to} width={plot.width} />
        </div>
      )}
      <span class="unseen" aria-live="polite">
        {at && document.activeElement === target.current
          ? `${at}${index !== null && isIncomplete(index) ? ", incomplete interval" : ""}: ${lines.map((line) => `${line.label} ${format(line.values[shownAt])}`).join(", ")}`
          : ""}
      </span>
    </figure>
  );
}

function describeIncomplete([first, last]: [boolean, boolean]): string {
  const which = first && last ? "first and the last interval are" : `${first ? "first" : "last"} interval is`;
  return `The ${which} not completely in the time range, so the values can be lower or less accurate.`;
}

function lastIndex(lines: Line[]): number {
  return (lines[0]?.values.length ?? 1) - 1;
}

function lastValue(values: (number | null)[]): number | null {
  return [...values].reverse().find((value) => value !== null) ?? null;
}

function isLonely(values: (number | null)[], at: number): boolean {
  const missing = (each: number | null | undefined) => each === null || each === undefined;
  return !missing(values[at]) && missing(values[at - 1]) && missing(values[at + 1]);
}

function lonely(self: uPlot, series: number): number[] {
  const values = self.data[series] as (number | null)[];
  return values.flatMap((_, at) => (isLonely(values, at) ? [at] : []));
}

function ticksOf(self: uPlot): ReturnType<typeof timeTicks> {
  const { min = 0, max = 1 } = self.scales.x ?? {};
  return timeTicks((min ?? 0) * 1000, (max ?? 1) * 1000, Math.max(self.width / 70, 2));
}

function plotOf(self: uPlot): { left: number; top: number; width: number; height: number } {
  const { left, top, width, height } = self.bbox;
  const scale = devicePixelRatio || 1;
  return { left: left / scale, top: top / scale, width: width / scale, height: height / scale };
}

/** Shade the times in which alerts were active. */
function drawAlerts(self: uPlot, marks: Mark[]): void {
  const context = self.ctx;
  const { left, top, width, height } = self.bbox;
  context.save();
  context.fillStyle = `${token("retry")}22`;
  for (const mark of marks.filter((each) => each.kind === "alert")) {
    const from = Math.max(self.valToPos(Date.parse(mark.at) / 1000, "x", true), left);
    const until = mark.until ? self.valToPos(Date.parse(mark.until) / 1000, "x", true) : left + width;
    context.fillRect(from, top, Math.max(Math.min(until, left + width) - from, 0), height);
  }
  context.restore();
}
