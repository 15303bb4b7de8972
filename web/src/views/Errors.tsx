/** Failures, grouped by error. */

import type { JSX } from "preact";
import type { ErrorRow, Errors as Data } from "../api";
import { Sparkline } from "../charts/Sparkline";
import { Ago } from "../clock";
import { command } from "../command";
import { count, plural, time } from "../format";
import { scope, section, table } from "../markdown";
import { usePage } from "../page";
import { Headline } from "../parts/Headline";
import { Empty, Panel } from "../parts/Panel";
import { and } from "../predicate";
import { useQuery } from "../query";
import { changed, go, Link, useParameters, viewAddress } from "../router";
import { followedSlowly } from "../stream";

export function Errors(): JSX.Element {
  const state = useParameters();
  const query = useQuery<Data>(
    "errors",
    "api/errors",
    { where: state.where, since: state.since, until: state.until },
    followedSlowly,
  );
  const { data } = query;
  const order = ORDERS.find(([name]) => name === state.sort)?.[0] ?? "new";
  const rows = data ? ordered(distinct(data.rows), order) : [];
  const sentence = data ? describe(rows) : "Errors";

  usePage({
    title: "Errors",
    command: command("errors", state),
    sql: "SELECT error_fingerprint, any_value(error) AS error, count(*) AS failures, min(started_at) AS first, max(started_at) AS last\nFROM runs\nWHERE failed\nGROUP BY ALL\nORDER BY failures DESC",
    markdown: () =>
      section(
        `# ${sentence}`,
        scope(state),
        table(
          ["error", "stage", "pipeline", "failures", "users", "first", "last", "example"],
          rows
            .slice(0, 30)
            .map(({ group }) => [
              `${group.is_new ? "NEW " : ""}${group.message}`,
              group.stage ?? "(run)",
              group.pipeline,
              count(group.count),
              count(group.users),
              time(group.first),
              time(group.last),
              group.examples[0] ?? "",
            ]),
        ),
      ),
  });

  return (
    <div class="stack">
      <Headline text={sentence} stale={query.stale} />
      <Panel
        flush
        title="Errors"
        actions={
          <span class="choice" role="group" aria-label="Order">
            {ORDERS.map(([name, title]) => (
              <button
                key={name}
                type="button"
                aria-pressed={order === name}
                onClick={() => go(changed({ sort: name === "new" ? "" : name }), { replace: true })}
              >
                {title}
              </button>
            ))}
          </span>
        }
        query={query}
        height={400}
        footer={
          data?.trend_since && data.trend_until
            ? `Trends from ${time(data.trend_since)} to ${time(data.trend_until)}.`
            : undefined
        }
      >
        {() =>
          rows.length ? (
            <table class="rows errors" aria-label="Errors">
              <thead>
                <tr>
                  <th scope="col">Error</th>
                  <th scope="col" class="medium-only">
                    Stage
                  </th>
                  <th scope="col" class="number">
                    Failures
                  </th>
                  <th scope="col" class="number wide-only">
                    Users
                  </th>
                  <th scope="col" class="medium-only trend">
                    Trend
                  </th>
                  <th
                    scope="col"
                    class="wide-only"
                    title="The first occurrence in the record, up to 30 days before the time range"
                  >
                    First
                  </th>
                  <th scope="col">Last</th>
                  <th scope="col" class="medium-only">
                    Example
                  </th>
                </tr>
              </thead>
              <tbody>
                {rows.map((row) => (
                  <ErrorLine
                    key={`${row.group.fingerprint ?? row.group.message}${row.group.pipeline}${row.group.stage}`}
                    row={row}
                  />
                ))}
              </tbody>
            </table>
          ) : (
            <Empty>
              <strong>No failures match the filter and the time range.</strong>
              <Link to={viewAddress("errors", { where: "", since: "", until: "" })}>Show all errors</Link>
            </Empty>
          )
        }
      </Panel>
    </div>
  );
}

type Order = "new" | "count" | "last" | "first";

const ORDERS: [Order, title: string][] = [
  ["new", "New first"],
  ["count", "Most frequent"],
  ["last", "Last seen"],
  ["first", "First seen"],
];

/** Sort the errors, which the server orders by their frequency. */
function ordered(rows: ErrorRow[], order: Order): ErrorRow[] {
  if (order === "count") return rows;
  if (order === "new")
    return [...rows].sort(({ group: one }, { group: other }) => Number(other.is_new) - Number(one.is_new));
  return [...rows].sort(
    ({ group: one }, { group: other }) => Date.parse(other[order]) - Date.parse(one[order]),
  );
}

function ErrorLine({ row }: { row: ErrorRow }): JSX.Element {
  const state = useParameters();
  const { group, where } = row;
  const example = group.examples[0];
  return (
    <tr>
      <td>
        <div class="error-name">
          {group.is_new && (
            <span class="tag" title="It first occurred in this time range, and not before">
              new
            </span>
          )}
          <strong class="mono">{group.kind}</strong>
          <Link to={viewAddress("explore", { select: where })} title="What is different about these failures">
            What is different
          </Link>
        </div>
        <bdi class="error-message" title={group.message}>
          {group.message.startsWith(`${group.kind}: `)
            ? group.message.slice(group.kind.length + 2)
            : group.message}
        </bdi>
        {group.messages > 1 && (
          <span class="muted small" title="Messages that differ from the newest one, which is shown">
            {" "}
            and {count(group.messages - 1)} other message{group.messages > 2 ? "s" : ""}
          </span>
        )}
        <div class="small-only muted small">
          {group.stage ?? "the run"}, {group.pipeline} · {plural(group.users, "user")} · first{" "}
          <Ago at={group.first} />
          {example && (
            <>
              {" · "}
              <Link to={viewAddress("run", { id: example })}>Example</Link>
            </>
          )}
          <FailuresOverTime trend={group.trend} />
        </div>
      </td>
      <td class="medium-only">
        <strong>{group.stage ?? "the run"}</strong>
        <div class="muted small">{group.pipeline}</div>
      </td>
      <td class="number">
        <Link to={viewAddress("runs", { where: and(state.where, where) })}>{count(group.count)}</Link>
      </td>
      <td class="number wide-only">{count(group.users)}</td>
      <td class="medium-only trend">
        <FailuresOverTime trend={group.trend} />
      </td>
      <td class="wide-only nowrap">
        <Ago at={group.first} />
      </td>
      <td class="nowrap">
        <Ago at={group.last} />
      </td>
      <td class="medium-only">{example && <Link to={viewAddress("run", { id: example })}>Open</Link>}</td>
    </tr>
  );
}

function FailuresOverTime({ trend }: { trend: number[] }): JSX.Element {
  return (
    <Sparkline
      kind="bars"
      colour="fail-bar"
      values={trend}
      label={`Failures over time: ${trend.map((each) => count(each)).join(", ")}`}
    />
  );
}

/** Leave out the failures of runs whose failing stage has its own row. */
function distinct(rows: ErrorRow[]): ErrorRow[] {
  const key = ({ group }: ErrorRow) => `${group.pipeline}\n${group.fingerprint}`;
  const ofStages = new Set(rows.filter(({ group }) => group.stage !== null && group.fingerprint).map(key));
  return rows.filter((row) => row.group.stage !== null || !ofStages.has(key(row)));
}

function describe(rows: ErrorRow[]): string {
  const first = rows.reduce<ErrorRow | null>(
    (most, row) => (most && most.group.count >= row.group.count ? most : row),
    null,
  );
  if (!first) return "No failures";
  const fresh = rows.filter(({ group }) => group.is_new);
  const total = rows.reduce((sum, { group }) => sum + group.count, 0);
  const names = [...new Set(fresh.map(nameOf))];
  const more = names.length > 3 ? ` and ${names.length - 3} more` : "";
  const newest = fresh.length
    ? `${plural(fresh.length, "new error")}: ${names.slice(0, 3).join(", ")}${more} · `
    : "";
  return `${newest}${plural(rows.length, "different error")} in ${plural(total, "failure")}, most often ${nameOf(first)}`;
}

function nameOf({ group }: ErrorRow): string {
  return `${group.kind} in ${group.stage ?? group.pipeline}`;
}
