/** The landing page: whether runs fail or are slow now, when this started, and what changed. */

import type { JSX } from "preact";
import { useMemo } from "preact/hooks";
import type { Causes, Finding, Mark, Overview as Data, Series } from "../api";
import { LineChart } from "../charts/LineChart";
import { MARK_KINDS } from "../charts/Marks";
import { Ago } from "../clock";
import { command } from "../command";
import { duration, shortTime, time, withTimes } from "../format";
import { scope, section, table } from "../markdown";
import { usePage } from "../page";
import { NewestRun } from "../parts/NewestRun";
import { Empty, Panel, ProblemBox, Skeleton } from "../parts/Panel";
import { RunTable } from "../parts/RunTable";
import { incident } from "../incident";
import { linesOf, openRange, openStep, STATS } from "../parts/SeriesPanel";
import { and } from "../predicate";
import { useQuery } from "../query";
import { Link, type Parameters, parameters, useParameters, viewAddress } from "../router";
import { useStore } from "../store";
import { followedSlowly, snapshot } from "../stream";

export function Overview(): JSX.Element {
  const state = useParameters();
  const info = useStore(snapshot);
  const range = { where: state.where, since: state.since, until: state.until };
  const query = useQuery<Data>("overview", "api/overview", range, followedSlowly);
  // To find what the affected runs have in common takes longer.
  const explained = useQuery<Causes>("causes", "api/causes", range, followedSlowly);
  const { data } = query;
  const causes = explained.stale ? null : explained.data;
  const findings = causes?.findings ?? data?.findings ?? [];
  const pending = query.stale ? "Loading…" : explained.loading && !causes ? "Searching for causes…" : null;
  const series = data?.series;
  const onsets = causes?.onsets;
  const marks = useMemo(() => [...(series?.marks ?? []), ...(onsets ?? [])], [series, onsets]);
  const changes = [...(onsets ?? []), ...(data?.changes ?? [])].sort(
    (one, other) => Date.parse(other.at) - Date.parse(one.at),
  );
  const lines = useMemo(
    () =>
      series && {
        count: linesOf(series, "count", "series-8"),
        failure_rate: linesOf(series, "failure_rate", "series-2"),
        p95_ms: linesOf(series, "p95_ms", "series-1"),
      },
    [series],
  );

  usePage({
    title: "Overview",
    command: command("stats", state),
    ...(data ? { sql: data.series.sql, markdown: () => markdown(state, changes, data, findings) } : {}),
  });

  if (query.problem && !data) return <ProblemBox problem={query.problem} retry={query.reload} />;
  if (info && info.runs === 0 && info.in_progress === 0) return <NoRecords source={info.source} />;
  return (
    <div class="stack">
      {!data ? <FindingsSkeleton /> : isEmpty(data) ? <NoRuns state={state} /> : (
        <Findings
          findings={findings}
          start={data.series.since}
          pending={pending}
          stale={query.stale}
          problem={causes ? null : (explained.problem?.title ?? null)}
        />
      )}
      <div class="columns-3">
        {(["count", "failure_rate", "p95_ms"] as const).map((stat) => (
          <Panel key={stat} title={TITLES[stat]} query={query} height={200} secondary={stat !== "p95_ms"}>
            {({ series: each }) =>
              lines && hasRuns(each) ? (
                <LineChart
                  name={TITLES[stat]}
                  title={each.estimated ? "≈, runs were sampled" : ""}
                  since={each.since}
                  step_s={each.step_s}
                  lines={lines[stat]}
                  marks={marks}
                  incomplete={[each.incomplete_first, each.incomplete_last]}
                  format={STATS[stat].format}
                  {...(STATS[stat].top ? { top: STATS[stat].top } : {})}
                  onRange={openRange}
                  onStep={(since, until) => openStep(stat, since, until)}
                />
              ) : (
                <Empty>No runs match.</Empty>
              )
            }
          </Panel>
        ))}
      </div>
      <div class="overview-lists">
        <Panel secondary title="What changed" query={query} height={180}>
          {() =>
            changes.length ? (
              <ol class="changes">
                {changes.slice(0, 12).map((change) => (
                  <li key={change.kind + change.label + change.at}>
                    <ChangeLine change={change} />
                  </li>
                ))}
              </ol>
            ) : (
              <p class="muted">
                {causes
                  ? "Nothing started, and no version, error or alert is new."
                  : explained.loading
                    ? "Searching for what changed…"
                    : "No version, error or alert is new."}
              </p>
            )
          }
        </Panel>
        <Panel
          flush
          secondary
          title="Newest failures"
          query={query}
          height={180}
          actions={<Link to={viewAddress("runs", { where: and(state.where, "failed") })}>All failures</Link>}
        >
          {({ failing }) =>
            failing.length ? (
              <RunTable brief rows={failing} label="Newest failures" />
            ) : (
              <p class="muted padded">No run failed.</p>
            )
          }
        </Panel>
        <Panel
          flush
          secondary
          title="Slowest runs"
          query={query}
          height={180}
          actions={<Link to={viewAddress("runs", { order: "-duration_ms" })}>All runs by duration</Link>}
        >
          {({ slowest }) =>
            slowest.length ? (
              <RunTable brief rows={slowest} label="Slowest runs" />
            ) : (
              <p class="muted padded">No runs match.</p>
            )
          }
        </Panel>
      </div>
    </div>
  );
}

function hasRuns(series: Series): boolean {
  return series.groups.some((group) => group.count.some((each) => each > 0));
}

function isEmpty({ series, findings }: Data): boolean {
  return !hasRuns(series) && findings.every((finding) => finding.level === "ok");
}

function NoRuns({ state }: { state: Parameters }): JSX.Element {
  return (
    <section aria-label="Findings">
      <Empty>
        <h1>No runs {state.where ? "match the filter" : "started"} in this time range</h1>
        <NewestRun />
      </Empty>
    </section>
  );
}

const TITLES = { count: "Runs", failure_rate: "Failure rate", p95_ms: "Duration, p95" };

const LEVELS: Record<Finding["level"], [shape: string, kind: string, word: string]> = {
  bad: ["✕", "fail", "problem"],
  warning: ["▲", "retry", "warning"],
  info: ["○", "skip", "information"],
  ok: ["●", "ok", "no problem"],
};

function Findings({
  findings,
  start,
  pending,
  stale,
  problem,
}: {
  findings: Finding[];
  /** Start of the time range. */
  start: string;
  /** What is still loading; null if nothing is. */
  pending: string | null;
  stale: boolean;
  /** Why the causes are unknown. */
  problem: string | null;
}): JSX.Element {
  return (
    <section aria-label="Findings" class="findings-area" aria-busy={pending !== null}>
      <h1 class={stale ? "stale" : ""}>
        {incident(findings)}
        {pending && (
          <span class="muted nowrap" role="status">
            {" "}
            {pending}
          </span>
        )}
        {problem && !pending && <span class="muted"> The causes are unknown: {problem}</span>}
      </h1>
      <ul class={`findings ${stale ? "stale" : ""}`}>
        {findings.map((finding, index) => {
          const [shape, kind, word] = LEVELS[finding.level];
          const to = address(finding, start);
          return (
            <li key={finding.text}>
              <span class={`shape is-${kind}`} aria-hidden="true">
                {shape}
              </span>
              <div>
                <span class="unseen">{word}: </span>
                {pending && !stale && index === 0 && <span class="muted">Provisional: </span>}
                <span>{withTimes(finding.text)}</span>{" "}
                {to && (
                  <Link to={to} class="nowrap">
                    {finding.view === "explore"
                      ? "What is different"
                      : finding.view === "status"
                        ? "Show the status"
                        : `Show the ${finding.view}`}
                  </Link>
                )}
                {to && finding.view === "explore" && finding.where && finding.since && (
                  <>
                    {" "}
                    <span class="muted" aria-hidden="true">
                      ·
                    </span>{" "}
                    <Link to={runsSince(finding, finding.since_range?.[0] ?? finding.since)} class="nowrap">
                      Runs since then
                    </Link>
                  </>
                )}
              </div>
            </li>
          );
        })}
      </ul>
    </section>
  );
}

function FindingsSkeleton(): JSX.Element {
  return (
    <div class="findings-area">
      <h1 class="unseen">Overview</h1>
      <Skeleton height={120} />
    </div>
  );
}

/** The address of the details of a finding: since its onset, if that is in the time range of the page. */
function address(finding: Finding, start: string): string | null {
  const { where, view, since } = finding;
  const range = since && Date.parse(since) > Date.parse(start) ? { since } : {};
  if (view === "explore") return viewAddress("explore", where ? { select: where, ...range } : range);
  if (view === "status") return viewAddress("status");
  return where ? viewAddress(view, { where }) : viewAddress(view);
}

/** The address of the affected runs: those that match the cause, if it is known. */
function runsSince({ where, cause }: Finding, since: string): string {
  const affected = and(where ?? "", cause ?? "");
  return viewAddress("runs", { where: and(parameters.value.where, affected), since });
}

function ChangeLine({ change }: { change: Mark }): JSX.Element {
  return (
    <>
      <span class="muted nowrap">
        <Ago at={change.at} />, {shortTime(change.at)}
      </span>
      <span class={change.kind === "version" ? "" : "is-fail"}>{MARK_KINDS[change.kind]}</span>
      {change.where ? (
        <Link to={viewAddress("explore", { select: change.where })}>
          <bdi>{change.label}</bdi>
        </Link>
      ) : (
        <Link to={viewAddress("status")}>
          <bdi>{change.label}</bdi>{" "}
          <span class="muted nowrap">
            {change.until
              ? `resolved after ${duration(Date.parse(change.until) - Date.parse(change.at))}`
              : "firing"}
          </span>
        </Link>
      )}
    </>
  );
}

function NoRecords({ source }: { source: string }): JSX.Element {
  return (
    <Empty>
      <h1>No runs yet</h1>
      <span>
        <code>{source}</code> contains no runs. They appear here as soon as a pipeline writes to this journal.
      </span>
      <pre>
        {
          'stageflow.configure(journal="journal")   # in the application\nstageflow demo                           # or runs to look at'
        }
      </pre>
    </Empty>
  );
}

function markdown(state: Parameters, changes: Mark[], data: Data, findings: Finding[]): string {
  return section(
    `# ${incident(findings)}`,
    scope(state),
    findings.map((finding) => `- ${finding.level}: ${finding.text}`).join("\n"),
    changes.length > 0 &&
      `## What changed\n\n${changes
        .slice(0, 12)
        .map(
          (each) =>
            `- ${time(each.at)}${each.until ? ` to ${time(each.until)}` : ""} ${MARK_KINDS[each.kind]}: ${each.label}`,
        )
        .join("\n")}`,
    data.failing.length > 0 &&
      `## Newest failures\n\n${table(
        ["started", "pipeline", "stage", "error", "org", "run"],
        data.failing.map((row) => [
          time(row.started_at),
          row.pipeline,
          row.failed_stage ?? "",
          row.error ?? "",
          row.org_id ?? "",
          row.run_id,
        ]),
      )}`,
    data.slowest.length > 0 &&
      `## Slowest runs\n\n${table(
        ["started", "pipeline", "duration", "outcome", "run"],
        data.slowest.map((row) => [
          time(row.started_at),
          row.pipeline,
          duration(row.duration_ms),
          row.outcome,
          row.run_id,
        ]),
      )}`,
  );
}
