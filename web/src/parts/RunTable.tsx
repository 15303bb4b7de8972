/** A table of runs. */

import type { JSX } from "preact";
import type { RunSummary } from "../api";
import { At } from "../clock";
import { duration, shortId } from "../format";
import { and, identifier, literal } from "../predicate";
import { changed, go, Link, parameters, viewAddress } from "../router";
import { Mark } from "./Mark";
import { Middle } from "./Middle";

type Properties = {
  rows: RunSummary[];
  label: string;
  /** Fewer columns, for a narrow panel. */
  brief?: boolean;
  order?: string;
  checked?: string[];
  onCheck?: (id: string) => void;
};

export function RunTable({ rows, label, brief = false, order, checked, onCheck }: Properties): JSX.Element {
  const running = rows.some((row) => row.running.length > 0);
  return (
    <table class={`runs ${onCheck ? "checkable" : ""} ${brief ? "brief" : ""}`} aria-label={label}>
      <thead>
        <tr>
          {onCheck && (
            <th class="c-check" scope="col">
              <span class="unseen">Select</span>
            </th>
          )}
          <th class="c-status" scope="col">
            Outcome
          </th>
          <th class="c-time" scope="col" aria-sort={sorted(order, "started_at")}>
            <Sortable order={order} field="started_at" text="Started" />
          </th>
          <th class="c-pipeline" scope="col">
            Pipeline
          </th>
          <th class="c-duration number" scope="col" aria-sort={sorted(order, "duration_ms")}>
            <Sortable order={order} field="duration_ms" text="Duration" />
          </th>
          <th class="medium-only" scope="col">
            {running ? "Running stage" : "Error"}
          </th>
          {!brief && (
            <>
              <th class="c-who wide-only" scope="col">
                Organization
              </th>
              <th class="c-who wide-only" scope="col">
                User
              </th>
              <th class="c-version wide-only" scope="col">
                Version
              </th>
              <th class="c-id medium-only" scope="col">
                Run
              </th>
            </>
          )}
        </tr>
      </thead>
      <tbody>
        {rows.map((row) => (
          <tr key={row.run_id} onClick={(event) => openRow(event, row)}>
            {onCheck && (
              <td class="c-check">
                <label>
                  <input
                    type="checkbox"
                    aria-label={`Select run ${row.run_id}`}
                    checked={checked?.includes(row.run_id) ?? false}
                    onChange={() => onCheck(row.run_id)}
                  />
                </label>
              </td>
            )}
            <td class="c-status">
              <Link
                data-row
                to={runAddress(row)}
                class="plain-link"
                aria-label={`${row.outcome} run of ${row.pipeline}, ${row.run_id}`}
              >
                <Mark status={row.outcome} />
              </Link>
            </td>
            <td class="c-time">
              <At at={row.started_at} />
            </td>
            <td class="c-pipeline" title={row.pipeline}>
              <Middle text={row.pipeline} title={false} />
            </td>
            <td class="c-duration number">{duration(row.duration_ms)}</td>
            <td class="c-error medium-only" title={reasonOf(row)}>
              <Reason row={row} />
            </td>
            {!brief && (
              <>
                <td class="c-org wide-only">
                  <Filter field="org_id" value={row.org_id} />
                </td>
                <td class="wide-only">
                  <Filter field="user_id" value={row.user_id} />
                </td>
                <td class="wide-only">
                  <Filter field="service_version" value={row.service_version} />
                </td>
                <td class="mono medium-only" title={row.run_id}>
                  {shortId(row.run_id)}
                </td>
              </>
            )}
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function runAddress(row: RunSummary): string {
  return viewAddress("run", { id: row.run_id });
}

/** Open a run by a click anywhere in its row, except on a control or while selecting text. */
function openRow(event: MouseEvent, row: RunSummary): void {
  const target = event.target as HTMLElement;
  if (target.closest("a, button, input, label") || String(getSelection() ?? "")) return;
  if (event.metaKey || event.ctrlKey) window.open(runAddress(row), "_blank", "noopener");
  else go(runAddress(row));
}

function Reason({ row }: { row: RunSummary }): JSX.Element | null {
  if (row.running.length) return <span class="is-running">{row.running.join(", ")}</span>;
  if (!row.error && !row.failed_stage) return null;
  return (
    <span class="reason">
      {row.failed_stage && <strong>{row.failed_stage} </strong>}
      <bdi class={row.failed ? "is-fail" : "muted"}>{withoutStage(row.error ?? "")}</bdi>
    </span>
  );
}

/** The stage and the complete error of a run. */
function reasonOf({ failed_stage, error }: RunSummary): string | undefined {
  return [failed_stage, withoutStage(error ?? "")].filter(Boolean).join(": ") || undefined;
}

/** The error of a run starts with the stage that failed, which has its own column. */
function withoutStage(error: string): string {
  return error.replace(/^stage '[^']*' failed: /, "");
}

/** A value that filters the list by itself. */
function Filter({ field, value }: { field: string; value: string | null }): JSX.Element {
  if (value === null) return <span class="muted">–</span>;
  const where = and(parameters.value.where, `${identifier(field)} = ${literal(value)}`);
  return (
    <Link to={viewAddress("runs", { where })} title={`Only ${field} = ${value}`}>
      <Middle text={value} title={false} />
    </Link>
  );
}

function sorted(order: string | undefined, field: string): "ascending" | "descending" | undefined {
  if (order === field) return "ascending";
  return order === `-${field}` ? "descending" : undefined;
}

function Sortable({
  order,
  field,
  text,
}: {
  order: string | undefined;
  field: string;
  text: string;
}): JSX.Element {
  if (order === undefined) return <>{text}</>;
  const direction = sorted(order, field);
  const next = direction === "descending" ? field : `-${field}`;
  return (
    <button
      type="button"
      onClick={() => go(changed({ order: next === "-started_at" ? "" : next, before: "" }))}
    >
      {text}{" "}
      <span aria-hidden="true">
        {direction === "ascending" ? "↑" : direction === "descending" ? "↓" : ""}
      </span>
    </button>
  );
}

/** Move the focus between rows with j and k. */
export function moveBetweenRows(event: KeyboardEvent, root: ParentNode): void {
  const step = { j: 1, k: -1 }[event.key];
  const target = event.target as HTMLElement;
  if (step === undefined || event.ctrlKey || event.metaKey || target.closest("input, textarea, select"))
    return;
  const rows = [...root.querySelectorAll<HTMLElement>("[data-row]")];
  const at = rows.indexOf(document.activeElement as HTMLElement);
  const next = rows[at < 0 ? 0 : Math.min(Math.max(at + step, 0), rows.length - 1)];
  next?.focus();
}
