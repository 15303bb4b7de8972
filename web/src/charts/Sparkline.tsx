/** A small chart without axes, for a row of a table. */

import type { JSX } from "preact";

type Properties = {
  values: (number | null)[];
  /** What it shows, for screen readers and as a tooltip. */
  label: string;
  kind?: "bars" | "line";
  colour?: string;
  /** Whether the last value is of an incomplete interval. */
  incomplete?: boolean;
  width?: number;
  height?: number;
};

export function Sparkline({
  values,
  label,
  kind = "line",
  colour = "accent",
  incomplete = false,
  width = 120,
  height = 20,
}: Properties): JSX.Element {
  const most = Math.max(...values.map((value) => value ?? 0), 0);
  const style = `var(--${colour})`;
  const step = width / Math.max(values.length, 1);
  const y = (value: number) => height - 1 - (most ? (value / most) * (height - 2) : 0);
  return (
    <svg
      class="sparkline"
      width={width}
      height={height}
      viewBox={`0 0 ${width} ${height}`}
      preserveAspectRatio="none"
      role="img"
      aria-label={label}
    >
      <title>{label}</title>
      <line x1="0" x2={width} y1={height - 0.5} y2={height - 0.5} stroke="var(--line)" />
      {kind === "bars"
        ? values.map((value, index) =>
            value ? (
              <rect
                key={index}
                x={index * step}
                y={y(value) - 1}
                width={Math.max(step - 1, 1)}
                height={height - y(value)}
                fill={style}
                opacity={incomplete && index === values.length - 1 ? 0.5 : 1}
              />
            ) : null,
          )
        : segments(values, incomplete).map((segment) => (
            <polyline
              key={segment[0]?.[0]}
              stroke-dasharray={incomplete && segment[segment.length - 1]?.[0] === values.length - 1 ? "2 2" : ""}
              points={segment
                .flatMap(([index, value], at) => {
                  const x = (index + 0.5) * step;
                  // One value without neighbours becomes a short line.
                  return segment.length === 1 && at === 0
                    ? [`${x - 1.5},${y(value)}`, `${x + 1.5},${y(value)}`]
                    : [`${x},${y(value)}`];
                })
                .join(" ")}
              fill="none"
              stroke={style}
              stroke-width="1.5"
              vector-effect="non-scaling-stroke"
            />
          ))}
    </svg>
  );
}

/** Split values at the gaps, and before the last one if it is incomplete. */
function segments(values: (number | null)[], incomplete: boolean): [number, number][][] {
  const all: [number, number][][] = [];
  let current: [number, number][] = [];
  for (const [index, value] of values.entries()) {
    if (value === null) {
      if (current.length) all.push(current);
      current = [];
    } else if (incomplete && index === values.length - 1 && current.length) {
      all.push(current);
      current = [current[current.length - 1] as [number, number], [index, value]];
    } else current.push([index, value]);
  }
  if (current.length) all.push(current);
  return all;
}
