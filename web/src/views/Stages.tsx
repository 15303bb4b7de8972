/** The stages of each pipeline: statistics, their course over time, and the graph. */

import type { JSX } from "preact";
import type { StageRow, Stages as Data } from "../api";
import { Graph } from "../charts/Graph";
import { Sparkline } from "../charts/Sparkline";
import { command } from "../command";
import { count, duration, number, percent, plural, shortTime } from "../format";
import { scope, section, table } from "../markdown";
import { usePage } from "../page";
import { Empty, Panel } from "../parts/Panel";
import { and } from "../predicate";
import { useQuery } from "../query";
import { changed, go, Link, useParameters, viewAddress } from "../router";
import { followedSlowly } from "../stream";

type Measure = { title: string; of: (row: StageRow) => number | null; show: (value: number | null) => string };

const perRun = ({ stat }: StageRow, rows: number) => (stat.count ? rows / stat.count : null);

const MEASURES: Record<string, Measure> = {
  p95: { title: "p95", of: ({ stat }) => stat.p95_ms, show: duration },
  p50: { title: "p50", of: ({ stat }) => stat.p50_ms, show: duration },
  p99: { title: "p99", of: ({ stat }) => stat.p99_ms, show: duration },
  failures: { title: "failure rate", of: ({ stat }) => stat.failure_rate, show: percent },
  change: { title: "change", of: (row) => changeOf(row)?.ratio ?? null, show: times },
  retries: { title: "retries per run", of: (row) => perRun(row, row.stat.retried), show: percent },
  skips: { title: "skipped", of: (row) => perRun(row, row.stat.skipped), show: percent },
  rows: { title: "rows", of: ({ stat }) => stat.count, show: count },
};

/** The duration of a stage in the last quarter of the time range, compared with the baseline before it. */
type Change = { name: "p95" | "p99"; before: number; after: number; ratio: number };

/** Fewest rows of each part for a percentile: a few of them are above it. */
const FEWEST = { p95: 60, p99: 300 };

/** A percentile or a failure rate has changed if it is at least this multiple of the earlier one. */
const NOTABLE = 1.5;

/** Return the change of the p95 or the p99, whichever is greater; null with too few rows. */
function changeOf({ earlier, recent }: StageRow): Change | null {
  const found = (["p95", "p99"] as const).flatMap((name): Change[] => {
    const [before, after] = [earlier[`${name}_ms`], recent[`${name}_ms`]];
    const rows = Math.min(earlier.count, recent.count);
    if (rows < FEWEST[name] || before === null || after === null || before <= 0) return [];
    return [{ name, before, after, ratio: after / before }];
  });
  const size = ({ ratio }: Change) => Math.abs(Math.log(Math.max(ratio, 1e-9)));
  return found.sort((one, other) => size(other) - size(one))[0] ?? null;
}

/** Fewest failures of the recent part for an increase. */
const FEWEST_FAILURES = 3;

/** The failures of a part have increased if they exceed the expected ones by this many standard deviations. */
const CERTAIN = 3;

/** By how many failures a stage exceeds the expected number; 0 if that can be a coincidence (Poisson). */
function moreFailures({ earlier, recent }: StageRow): number {
  if (earlier.failure_rate === null || !recent.failure_rate) return 0;
  const expected = earlier.failure_rate * (recent.failed / recent.failure_rate);
  const excess = recent.failed - expected;
  const isNotable = recent.failed >= Math.max(FEWEST_FAILURES, NOTABLE * expected);
  return isNotable && excess > CERTAIN * Math.sqrt(expected) ? excess : 0;
}

/** × 23, × 1.2 */
function times(ratio: number | null): string {
  return ratio === null ? "–" : `× ${number(Number(ratio.toPrecision(2)))}`;
}

export function Stages(): JSX.Element {
  const state = useParameters();
  const query = useQuery<Data>(
    "stages",
    "api/stages",
    { where: state.where, since: state.since, until: state.until },
    followedSlowly,
  );
  const { data } = query;
  const pipelines = data ? [...new Set(data.rows.map((row) => row.stat.pipeline))] : [];
  const pipeline = pipelines.includes(state.pipeline ?? "")
    ? (state.pipeline as string)
    : (pipelines[0] ?? "");
  const measure = MEASURES[state.colour ?? ""] ?? (MEASURES.p95 as Measure);
  const graph = data?.graphs.find((each) => each.pipeline === pipeline);
  const order = new Map(graph?.stages.map((name, index) => [name, index]));
  const by = MEASURES[state.sort ?? ""];
  const rows = (data?.rows ?? [])
    .filter((row) => row.stat.pipeline === pipeline)
    .sort((one, other) =>
      by
        ? (by.of(other) ?? -1) - (by.of(one) ?? -1)
        : (order.get(one.stat.stage ?? "") ?? 1e9) - (order.get(other.stat.stage ?? "") ?? 1e9),
    );
  const sentence = data ? describe(pipeline, rows) : "Stages";

  usePage({
    title: "Stages",
    command: command("stats", state, "--pipeline", pipeline),
    sql: `SELECT stage_name, count(*) AS rows, avg(failed::int) AS failure_rate, quantile_cont(duration_ms, [0.5, 0.95, 0.99]) AS p50_p95_p99\nFROM stages\nGROUP BY ALL\nORDER BY stage_name`,
    markdown: () =>
      section(
        `# ${sentence}`,
        scope(state),
        table(
          ["stage", "rows", "failure rate", "retried", "skipped", "p50", "p95", "p99", "change"],
          rows.map((row) => [row, row.stat] as const).map(([row, stat]) => [
            stat.stage ?? "",
            count(stat.count),
            percent(stat.failure_rate),
            count(stat.retried),
            count(stat.skipped),
            duration(stat.p50_ms),
            duration(stat.p95_ms),
            duration(stat.p99_ms),
            changeText(changeOf(row)),
          ]),
        ),
      ),
  });

  const stats = new Map(rows.map((row) => [row.stat.stage, row]));
  const most = Math.max(...rows.map((row) => measure.of(row) ?? 0), 1e-12);
  const open = (name: string) => {
    const row = stats.get(name);
    if (row) go(viewAddress("explore", { over: "stages", where: row.where }));
  };

  return (
    <div class="stack">
      <div class="headline">
        <h1>{sentence}</h1>
        {pipelines.length > 1 && (
          <label class="control">
            pipeline
            <select
              value={pipeline}
              onChange={(event) => go(changed({ pipeline: event.currentTarget.value }))}
            >
              {pipelines.map((name) => (
                <option key={name}>{name}</option>
              ))}
            </select>
          </label>
        )}
      </div>
      <Panel
        title="Graph"
        query={query}
        height={160}
        actions={
          <label class="control">
            color
            <select
              value={Object.keys(MEASURES).find((name) => MEASURES[name] === measure)}
              onChange={(event) => go(changed({ colour: event.currentTarget.value }), { replace: true })}
            >
              {Object.entries(MEASURES).map(([name, { title }]) => (
                <option key={name} value={name}>
                  {title}
                </option>
              ))}
            </select>
          </label>
        }
      >
        {() =>
          graph && graph.stages.length ? (
            <Graph
              label={`Graph of ${pipeline}`}
              selected={null}
              onSelect={open}
              edges={graph.edges}
              nodes={graph.stages.map((name) => {
                const row = stats.get(name);
                const value = row ? measure.of(row) : null;
                return {
                  name,
                  detail: row ? `${measure.title} ${measure.show(value)}` : "no rows",
                  status: null,
                  heat: value === null ? 0 : value / most,
                };
              })}
            />
          ) : (
            <Empty>The records contain no graph of this pipeline.</Empty>
          )
        }
      </Panel>
      <Panel flush secondary title={pipeline ? `Stages of ${pipeline}` : "Stages"} query={query} height={320}>
        {(all) =>
          rows.length ? (
            <StageTable rows={rows} data={all} />
          ) : (
            <Empty>
              <strong>No stages match the filter and the time range.</strong>
              <Link to={viewAddress("stages", { where: "", since: "", until: "" })}>Show all stages</Link>
            </Empty>
          )
        }
      </Panel>
    </div>
  );
}

function changeText(change: Change | null): string {
  if (!change) return "";
  return `${change.name} ${duration(change.before)} to ${duration(change.after)} (${times(change.ratio)})`;
}

/** A header that sorts the table; a second click restores the order of the graph. */
function Sort({ by, title }: { by: string; title: string }): JSX.Element {
  const { sort } = useParameters();
  const isSorted = sort === by;
  return (
    <button
      type="button"
      title={isSorted ? "Show the stages in the order of the graph" : "Sort, highest first"}
      onClick={() => go(changed({ sort: isSorted ? "" : by }), { replace: true })}
    >
      {title}
      {isSorted && <span aria-hidden="true"> ↓</span>}
    </button>
  );
}

function StageTable({ rows, data }: { rows: StageRow[]; data: Data }): JSX.Element {
  const { sort } = useParameters();
  const estimated = rows.some((row) => row.stat.estimated);
  const column = (by: string, title: string, kind = "") => (
    <th
      scope="col"
      class={`number ${kind}`}
      {...(sort === by ? { "aria-sort": "descending" as const } : {})}
    >
      <Sort by={by} title={title} />
    </th>
  );
  return (
    <>
      <table class="rows stages" aria-label="Stages">
        <thead>
          <tr>
            <th scope="col">Stage</th>
            {column("rows", estimated ? "≈ Rows" : "Rows", "medium-only")}
            {column("failures", "Failure rate")}
            {column("retries", "Retries", "wide-only")}
            {column("skips", "Skipped", "wide-only")}
            {column("p50", "p50", "medium-only")}
            {column("p95", "p95", "medium-only")}
            {column("p99", "p99", "medium-only")}
            {column("change", "Change")}
            <th scope="col" class="wide-only trend">
              p95 over time
            </th>
            <th scope="col" class="medium-only trend">
              p99 over time
            </th>
            <th scope="col" class="wide-only trend">
              Failures over time
            </th>
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <StageLine key={row.stat.stage} row={row} data={data} />
          ))}
        </tbody>
      </table>
      <p class="muted small padded">
        Change: the p95 or the p99 (the one that changed more) of the last quarter of the time range, which
        starts at {shortTime(data.recent_since)}, divided by that before it. Each interval of the charts is{" "}
        {duration(data.step_s * 1000)}
        {data.incomplete_last ? "; the last one is incomplete (dashed)" : ""}.
      </p>
    </>
  );
}

function StageLine({ row, data }: { row: StageRow; data: Data }): JSX.Element {
  const { stat } = row;
  const change = changeOf(row);
  const isNotable = change !== null && change.ratio >= NOTABLE;
  const explore = (extra: Record<string, string>) =>
    viewAddress("explore", { over: "stages", where: row.where, ...extra });
  const overTime = (name: "p95" | "p99") => {
    const values = row[`${name}_ms`];
    return (
      <Sparkline
        values={values}
        incomplete={data.incomplete_last}
        label={`${name} over time, last ${duration(values[values.length - 1])}`}
      />
    );
  };
  return (
    <tr>
      <td>
        <Link to={explore({})} title="Explore the rows of this stage">
          <bdi>{stat.stage}</bdi>
        </Link>
        <div class="small-only muted small">
          <span class="nowrap">{count(stat.count)} rows</span> ·{" "}
          <span class="nowrap">p50 {duration(stat.p50_ms)}</span> ·{" "}
          <span class="nowrap">p95 {duration(stat.p95_ms)}</span> ·{" "}
          <span class="nowrap">p99 {duration(stat.p99_ms)}</span>
          {overTime("p99")}
        </div>
      </td>
      <td class="number medium-only">{count(stat.count)}</td>
      <td class="number">
        {stat.failed ? (
          <Link
            to={explore({ where: and(row.where, "failed") })}
            title={interval(stat.failure_rate_interval, percent)}
          >
            {percent(stat.failure_rate)}
          </Link>
        ) : (
          <span class="muted">{percent(stat.failure_rate)}</span>
        )}
      </td>
      <td class="number wide-only">{stat.retried ? count(stat.retried) : <span class="muted">0</span>}</td>
      <td class="number wide-only">{stat.skipped ? count(stat.skipped) : <span class="muted">0</span>}</td>
      <td class="number medium-only">{duration(stat.p50_ms)}</td>
      <td class="number medium-only" title={interval(stat.p95_interval, duration)}>
        {duration(stat.p95_ms)}
      </td>
      <td class="number medium-only">{duration(stat.p99_ms)}</td>
      <td class="number nowrap" title={changeText(change)}>
        {change ? (
          <>
            <span class="muted small">{change.name}</span>{" "}
            <span class={isNotable ? "is-fail" : ""}>{times(change.ratio)}</span>
          </>
        ) : (
          <span class="muted">–</span>
        )}
      </td>
      <td class="wide-only trend">{overTime("p95")}</td>
      <td class="medium-only trend">{overTime("p99")}</td>
      <td class="wide-only trend">
        <Sparkline
          kind="bars"
          colour="fail-bar"
          values={row.failed}
          incomplete={data.incomplete_last}
          label={`Failures over time, ${plural(stat.failed, "failure")} in total`}
        />
      </td>
    </tr>
  );
}

function interval(limits: [number, number] | null, show: (value: number) => string): string | undefined {
  return limits ? `estimated, 95% between ${show(limits[0])} and ${show(limits[1])}` : undefined;
}

/** The recent part of the time range in words; its start is not when something changed. */
const RECENTLY = "in the last quarter of the time range";

/** What changed, and then which stage is slowest. */
function describe(pipeline: string, rows: StageRow[]): string {
  if (rows.length === 0) return "No stages match";
  const best = (of: (row: StageRow) => number) => [...rows].sort((one, other) => of(other) - of(one))[0];
  const added = (row: StageRow) => {
    const change = changeOf(row);
    return change && change.ratio >= NOTABLE ? change.after - change.before : 0;
  };
  const slower = best(added);
  const failing = best(moreFailures);
  const slowest = best((row) => row.stat.p95_ms ?? 0);
  const parts: string[] = [];
  const change = slower && added(slower) > 0 ? changeOf(slower) : null;
  if (slower && change) {
    parts.push(
      `${slower.stat.stage} became slower: ${change.name} ${duration(change.after)} ${RECENTLY}, ${duration(change.before)} before`,
    );
  }
  if (failing && moreFailures(failing)) {
    const { stat, recent, earlier } = failing;
    parts.push(
      `${stat.stage} fails more often: ${percent(recent.failure_rate)}${change ? "" : ` ${RECENTLY}`}, ${percent(earlier.failure_rate)} before`,
    );
  }
  if (parts.length === 0) parts.push(`${plural(rows.length, "stage")}, none became slower`);
  if (slowest && slowest.stat.p95_ms !== null)
    parts.push(`slowest ${slowest.stat.stage} (p95 ${duration(slowest.stat.p95_ms)})`);
  return `${pipeline}: ${parts.join(" · ")}`;
}
