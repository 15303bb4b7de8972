/** Counts, failure rates and durations over time, by a field. */

import type { JSX } from "preact";
import { useMemo } from "preact/hooks";
import type { Completion, Mark, Series, SeriesGroup } from "../api";
import { type Line, LineChart } from "../charts/LineChart";
import { MarkLegend } from "../charts/Marks";
import { compact, count, duration, NO_VALUE, percent, plural } from "../format";
import type { Loaded } from "../query";
import { and } from "../predicate";
import { FieldOptions } from "./FieldOptions";
import { Middle } from "./Middle";
import { changed, go, Link, parameters, useParameters, viewAddress } from "../router";
import { Empty, Panel } from "./Panel";

export type Stat = "count" | "failure_rate" | "p50_ms" | "p95_ms" | "p99_ms";

export const STATS: Record<
  Stat,
  { title: string; format: (value: number | null | undefined) => string; top?: number }
> = {
  count: { title: "Count", format: compact },
  failure_rate: { title: "Failure rate", format: percent, top: 0.01 },
  p50_ms: { title: "Duration, p50", format: duration },
  p95_ms: { title: "Duration, p95", format: duration },
  p99_ms: { title: "Duration, p99", format: duration },
};

/** Return the lines of one statistic: one for each group, or one and last week's. */
export function linesOf(data: Series, stat: Stat, colour?: string): Line[] {
  const grouped = data.by !== null;
  const colours = coloursOf(data.groups);
  if (hasSelection(data)) {
    return data.groups.map((group) => ({
      label: group.name === "selection" ? "selection" : "the rest",
      values: values(group, stat),
      colour: group.name === "selection" ? "accent" : "rest",
    }));
  }
  const lines: Line[] = data.groups.map((group, index) => ({
    label: grouped ? (group.name ?? NO_VALUE) : "all",
    values: values(group, stat),
    colour: colour && !grouped ? colour : (colours[index] as string),
    filled: !grouped,
    ...(grouped && group.where ? { to: changed({ where: and(parameters.value.where, group.where) }) } : {}),
  }));
  if (data.previous)
    lines.push({
      label: "a week earlier",
      values: values(data.previous, stat),
      colour: "rest",
      dashed: true,
    });
  return lines;
}

/** Whether the series are a selection and the rest. */
function hasSelection({ by, groups }: Series): boolean {
  return by === null && groups[0]?.name === "selection";
}

const COLOURS = 10;

/**
 * Return the colour of each group, which does not change with the filter: it belongs to the rank of the value.
 *
 * If two groups have the same colour, the one of the higher rank gets the next free colour.
 */
export function coloursOf(groups: Pick<SeriesGroup, "rank" | "where">[]): string[] {
  const found: string[] = groups.map((group) => (group.where === null ? "series-1" : "muted"));
  const taken = new Set<number>();
  const ranked = groups
    .map((group, index) => ({ index, rank: group.rank }))
    .filter((each): each is { index: number; rank: number } => each.rank !== null)
    .sort((one, other) => one.rank - other.rank);
  for (const { index, rank } of ranked) {
    let colour = rank % COLOURS;
    while (taken.has(colour) && taken.size < COLOURS) colour = (colour + 1) % COLOURS;
    taken.add(colour);
    found[index] = `series-${colour + 1}`;
  }
  return found;
}

function values(group: SeriesGroup, stat: Stat): (number | null)[] {
  return group[stat];
}

/** Open the runs of a time step of a chart. */
export function openStep(stat: Stat, since: string, until: string): void {
  const where =
    stat === "failure_rate" ? and(parameters.value.where, "failed") : (parameters.value.where ?? "");
  const order = stat === "count" || stat === "failure_rate" ? "" : "-duration_ms";
  go(viewAddress("runs", { where, since, until, order }));
}

/** Open a time range that was dragged in a chart. */
export function openRange(since: string, until: string): void {
  go(changed({ since, until, select: "", against: "" }));
}

type Properties = {
  query: Loaded<Series>;
  fields: Completion[];
  /** What the chart shows if nothing else was chosen. */
  preset: Stat;
  marks: Mark[];
};

export function SeriesPanel({ query, fields, preset, marks }: Properties): JSX.Element {
  const state = useParameters();
  const stat: Stat = state.chart && state.chart in STATS ? (state.chart as Stat) : preset;
  const { data } = query;
  const lines = useMemo(() => (data ? linesOf(data, stat) : []), [data, stat, state.where]);
  const from = data ? Date.parse(data.since) : 0;
  return (
    <Panel
      title={state.select && state.by ? `Over time, all ${state.over === "stages" ? "stages" : "runs"}` : "Over time"}
      query={query}
      height={200}
      actions={
        <>
          <label class="control">
            show
            <select
              value={stat}
              onChange={(event) => go(changed({ chart: event.currentTarget.value }), { replace: true })}
            >
              {Object.entries(STATS).map(([name, { title }]) => (
                <option key={name} value={name}>
                  {title}
                </option>
              ))}
            </select>
          </label>
          <label class="control">
            group by
            <select
              value={state.by ?? ""}
              onChange={(event) => go(changed({ by: event.currentTarget.value }))}
            >
              <option value="">nothing</option>
              <GroupOptions fields={fields} chosen={state.by ?? ""} />
            </select>
          </label>
        </>
      }
      footer={
        data &&
        (data.other_groups > 0 || marks.length > 0) && (
          <>
            {data.other_groups > 0 && (
              <span>The ten most frequent values; {plural(data.other_groups, "other value")} not shown.</span>
            )}
            <MarkLegend marks={marks} since={from} until={from + data.steps * data.step_s * 1000} />
          </>
        )
      }
    >
      {(series) =>
        lines.length && series.groups.some((group) => group.count.some((each) => each > 0)) ? (
          <>
            <LineChart
              name={STATS[stat].title}
              title={`${STATS[stat].title}${series.estimated ? " (≈, runs were sampled)" : ""}`}
              since={series.since}
              step_s={series.step_s}
              lines={lines}
              marks={marks}
              incomplete={[series.incomplete_first, series.incomplete_last]}
              format={STATS[stat].format}
              {...(STATS[stat].top ? { top: STATS[stat].top } : {})}
              onRange={openRange}
              onStep={(since, until) =>
                state.over === "stages" ? openRange(since, until) : openStep(stat, since, until)
              }
            />
            {series.by !== null && <GroupTable data={series} field={series.by} />}
          </>
        ) : (
          <Empty>No rows match the filter and the time range.</Empty>
        )
      }
    </Panel>
  );
}

/** The fields to group by, most useful first. */
function GroupOptions({ fields, chosen }: { fields: Completion[]; chosen: string }): JSX.Element {
  const useful = fields
    .filter((each) => each.usefulness !== null)
    .sort((one, other) => (other.usefulness ?? 0) - (one.usefulness ?? 0));
  const isKnown = useful.some((each) => each.text === chosen);
  return (
    <>
      {chosen !== "" && !isKnown && <option value={chosen}>{chosen}</option>}
      <FieldOptions fields={useful} />
    </>
  );
}

/** The totals of each group; the name of a group filters by it. */
function GroupTable({ data, field }: { data: Series; field: string }): JSX.Element {
  const state = useParameters();
  const colours = coloursOf(data.groups);
  return (
    <div class="table-scroll">
      <table class="rows" aria-label="Totals of each group">
        <thead>
          <tr>
            <th scope="col">{field}</th>
            <th scope="col" class="number">{state.over === "stages" ? "Stages" : "Runs"}</th>
            <th scope="col" class="number medium-only">Failed</th>
            <th scope="col" class="number">Failure rate</th>
            <th scope="col" class="number medium-only">p50</th>
            <th scope="col" class="number">p95</th>
            <th scope="col" class="number wide-only">p99</th>
          </tr>
        </thead>
        <tbody>
          {data.groups.map(
            ({ name, where, total }, index) =>
              total && (
                <tr key={name ?? ""}>
                  <td class="group-name">
                    <i aria-hidden="true" style={{ background: `var(--${colours[index]})` }} />
                    <Link
                      to={changed({ where: and(state.where, where ?? "") })}
                      title={`Show only ${name ?? NO_VALUE}`}
                    >
                      <Middle text={name ?? NO_VALUE} title={false} />
                    </Link>
                  </td>
                  <td class="number">{count(total.count)}</td>
                  <td class="number medium-only">{count(total.failed)}</td>
                  <td class="number">{percent(total.failure_rate)}</td>
                  <td class="number medium-only">{duration(total.p50_ms)}</td>
                  <td class="number">{duration(total.p95_ms)}</td>
                  <td class="number wide-only">{duration(total.p99_ms)}</td>
                </tr>
              ),
          )}
        </tbody>
      </table>
    </div>
  );
}
