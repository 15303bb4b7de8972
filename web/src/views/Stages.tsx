/** The stages of each pipeline: statistics, their course over time, and the graph. */

import type { JSX } from "preact";
import type { StageRow, Stages as Data, Stat } from "../api";
import { Graph } from "../charts/Graph";
import { Sparkline } from "../charts/Sparkline";
import { command } from "../command";
import { count, duration, percent, plural } from "../format";
import { scope, section, table } from "../markdown";
import { usePage } from "../page";
import { Empty, Panel } from "../parts/Panel";
import { and } from "../predicate";
import { useQuery } from "../query";
import { changed, go, Link, useParameters, viewAddress } from "../router";
import { followedSlowly } from "../stream";

type Measure = { title: string; of: (stat: Stat) => number | null; show: (value: number | null) => string };

const MEASURES: Record<string, Measure> = {
  p95: { title: "p95", of: (stat) => stat.p95_ms, show: duration },
  p50: { title: "p50", of: (stat) => stat.p50_ms, show: duration },
  failures: { title: "failure rate", of: (stat) => stat.failure_rate, show: percent },
  retries: {
    title: "retries per run",
    of: (stat) => (stat.count ? stat.retried / stat.count : null),
    show: percent,
  },
  skips: { title: "skipped", of: (stat) => (stat.count ? stat.skipped / stat.count : null), show: percent },
};

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
  const rows = (data?.rows ?? [])
    .filter((row) => row.stat.pipeline === pipeline)
    .sort(
      (one, other) => (order.get(one.stat.stage ?? "") ?? 1e9) - (order.get(other.stat.stage ?? "") ?? 1e9),
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
          ["stage", "rows", "failure rate", "retried", "skipped", "p50", "p95", "p99"],
          rows.map(({ stat }) => [
            stat.stage ?? "",
            count(stat.count),
            percent(stat.failure_rate),
            count(stat.retried),
            count(stat.skipped),
            duration(stat.p50_ms),
            duration(stat.p95_ms),
            duration(stat.p99_ms),
          ]),
        ),
      ),
  });

  const stats = new Map(rows.map((row) => [row.stat.stage, row]));
  const most = Math.max(...rows.map((row) => measure.of(row.stat) ?? 0), 1e-12);
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
                const value = row ? measure.of(row.stat) : null;
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

function StageTable({ rows, data }: { rows: StageRow[]; data: Data }): JSX.Element {
  const estimated = rows.some((row) => row.stat.estimated);
  return (
    <>
      <table class="rows stages" aria-label="Stages">
        <thead>
          <tr>
            <th scope="col">Stage</th>
            <th scope="col" class="number medium-only">
              {estimated ? "≈ Rows" : "Rows"}
            </th>
            <th scope="col" class="number">
              Failure rate
            </th>
            <th scope="col" class="number wide-only">
              Retries
            </th>
            <th scope="col" class="number wide-only">
              Skipped
            </th>
            <th scope="col" class="number medium-only">
              p50
            </th>
            <th scope="col" class="number">
              p95
            </th>
            <th scope="col" class="number wide-only">
              p99
            </th>
            <th scope="col" class="medium-only trend">
              p95 over time
            </th>
            <th scope="col" class="wide-only trend">
              Failures over time
            </th>
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <StageLine key={row.stat.stage} row={row} />
          ))}
        </tbody>
      </table>
      <span class="unseen">Each step is {duration(data.step_s * 1000)}.</span>
    </>
  );
}

function StageLine({ row }: { row: StageRow }): JSX.Element {
  const { stat } = row;
  const explore = (extra: Record<string, string>) =>
    viewAddress("explore", { over: "stages", where: row.where, ...extra });
  return (
    <tr>
      <td>
        <Link to={explore({})} title="Explore the rows of this stage">
          <bdi>{stat.stage}</bdi>
        </Link>
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
      <td class="number" title={interval(stat.p95_interval, duration)}>
        {duration(stat.p95_ms)}
      </td>
      <td class="number wide-only">{duration(stat.p99_ms)}</td>
      <td class="medium-only trend">
        <Sparkline
          values={row.p95_ms}
          label={`p95 over time, last ${duration(row.p95_ms[row.p95_ms.length - 1])}`}
        />
      </td>
      <td class="wide-only trend">
        <Sparkline
          kind="bars"
          colour="fail-bar"
          values={row.failed}
          label={`Failures over time, ${plural(stat.failed, "failure")} in total`}
        />
      </td>
    </tr>
  );
}

function interval(limits: [number, number] | null, show: (value: number) => string): string | undefined {
  return limits ? `estimated, 95% between ${show(limits[0])} and ${show(limits[1])}` : undefined;
}

function describe(pipeline: string, rows: StageRow[]): string {
  if (rows.length === 0) return "No stages match";
  const slowest = [...rows].sort((one, other) => (other.stat.p95_ms ?? 0) - (one.stat.p95_ms ?? 0))[0];
  const failing = [...rows].sort(
    (one, other) => (other.stat.failure_rate ?? 0) - (one.stat.failure_rate ?? 0),
  )[0];
  const parts = [`${pipeline}: ${plural(rows.length, "stage")}`];
  if (slowest) parts.push(`slowest ${slowest.stat.stage} (p95 ${duration(slowest.stat.p95_ms)})`);
  if (failing?.stat.failed)
    parts.push(`fails most often: ${failing.stat.stage} (${percent(failing.stat.failure_rate)})`);
  return parts.join(" · ");
}
