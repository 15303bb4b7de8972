/** The graph of a pipeline. */

import dagre from "@dagrejs/dagre";
import type { JSX } from "preact";
import { useMemo } from "preact/hooks";
import { type Kind, shapeOf } from "../parts/Mark";

export type Node = {
  name: string;
  /** A second line, such as a duration. */
  detail: string;
  /** The status that the border shows; null without one. */
  status: Kind | null;
  /** A share from 0 to 1 that the background shows; null without one. */
  heat: number | null;
  critical?: boolean;
};

type Properties = {
  nodes: Node[];
  edges: [string, string][];
  selected: string | null;
  onSelect: (name: string) => void;
  label: string;
};

const HEIGHT = 40;
const MOST = 28;

export function Graph({ nodes, edges, selected, onSelect, label }: Properties): JSX.Element {
  const shape = JSON.stringify([nodes.map((node) => node.name), edges]);
  const graph = useMemo(() => arrange(nodes, edges), [shape]);
  const at = new Map(nodes.map((node) => [node.name, node]));
  return (
    <div class="graph" tabIndex={0} role="region" aria-label={label}>
      <svg width={graph.width} height={graph.height} viewBox={`0 0 ${graph.width} ${graph.height}`}>
        <defs>
          <marker
            id="arrow"
            viewBox="0 0 8 8"
            refX="7"
            refY="4"
            markerWidth="7"
            markerHeight="7"
            orient="auto"
          >
            <path d="M0 0.5L7 4L0 7.5z" fill="var(--line-strong)" />
          </marker>
        </defs>
        {graph.edges.map(({ from, to, path }) => (
          <path
            key={`${from}→${to}`}
            d={path}
            class={at.get(from)?.critical && at.get(to)?.critical ? "edge critical" : "edge"}
            marker-end="url(#arrow)"
          />
        ))}
        {graph.nodes.map(({ name, x, y, width }) => {
          const node = at.get(name);
          if (!node) return null;
          return (
            <g
              key={name}
              class={`node ${node.heat !== null && node.heat > 0.2 ? "hot" : ""} ${node.status ? `is-${node.status}` : ""} ${node.critical ? "critical" : ""}`}
              transform={`translate(${x - width / 2} ${y - HEIGHT / 2})`}
              role="button"
              tabIndex={0}
              aria-pressed={selected === name}
              onClick={() => onSelect(name)}
              onKeyDown={(event) => {
                if (event.key !== "Enter" && event.key !== " ") return;
                event.preventDefault();
                onSelect(name);
              }}
            >
              {name.length > MOST && <title>{name}</title>}
              <rect width={width} height={HEIGHT} rx="6" />
              {node.heat !== null && (
                <rect
                  class="heat"
                  width={width}
                  height={HEIGHT}
                  rx="6"
                  style={{ opacity: node.heat * 0.4 }}
                />
              )}
              <text x="10" y="17" class="name">
                {node.status && (
                  <tspan class="shape" aria-hidden="true">
                    {shapeOf(node.status)}{" "}
                  </tspan>
                )}
                {shorten(name)}
              </text>
              <text x="10" y="32" class="detail">
                {node.detail}
              </text>
            </g>
          );
        })}
      </svg>
    </div>
  );
}

/** Cut a name in the middle, because names often differ at their end. */
function shorten(name: string): string {
  const characters = [...name];
  if (characters.length <= MOST) return name;
  const end = MOST >> 1;
  return `${characters.slice(0, MOST - 1 - end).join("")}…${characters.slice(-end).join("")}`;
}

type Arranged = {
  width: number;
  height: number;
  nodes: { name: string; x: number; y: number; width: number }[];
  edges: { from: string; to: string; path: string }[];
};

function arrange(nodes: Node[], edges: [string, string][]): Arranged {
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({
    rankdir: innerWidth < 720 ? "TB" : "LR",
    nodesep: 12,
    ranksep: 36,
    marginx: 4,
    marginy: 4,
  });
  graph.setDefaultEdgeLabel(() => ({}));
  const known = new Set(nodes.map((node) => node.name));
  for (const node of nodes) {
    const width = Math.max(Math.min(node.name.length, MOST) * 7.4 + 34, 96);
    graph.setNode(node.name, { width, height: HEIGHT });
  }
  for (const [from, to] of edges) if (known.has(from) && known.has(to)) graph.setEdge(from, to);
  dagre.layout(graph);
  const size = graph.graph() as { width?: number; height?: number };
  return {
    width: Math.ceil(size.width ?? 0),
    height: Math.ceil(size.height ?? 0),
    nodes: graph.nodes().map((name: string) => {
      const { x, y, width } = graph.node(name) as { x: number; y: number; width: number };
      return { name, x, y, width };
    }),
    edges: graph.edges().map(({ v, w }: { v: string; w: string }) => {
      const { points } = graph.edge(v, w) as { points: { x: number; y: number }[] };
      return { from: v, to: w, path: curve(points) };
    }),
  };
}

/** A smooth line through the points of an edge. */
function curve(points: { x: number; y: number }[]): string {
  const [first, ...rest] = points;
  if (!first) return "";
  const parts = [`M${first.x} ${first.y}`];
  for (let index = 0; index < rest.length - 1; index += 1) {
    const control = rest[index] as { x: number; y: number };
    const next = rest[index + 1] as { x: number; y: number };
    const last = index === rest.length - 2;
    parts.push(
      `Q${control.x} ${control.y} ${last ? next.x : (control.x + next.x) / 2} ${last ? next.y : (control.y + next.y) / 2}`,
    );
  }
  if (rest.length === 1) parts.push(`L${rest[0]?.x} ${rest[0]?.y}`);
  return parts.join("");
}
