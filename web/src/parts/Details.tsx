/** Everything about one attempt of a stage, or about a whole run, in tabs. */

import type { ComponentChildren, JSX } from "preact";
import type { Typical } from "../api";
import { copy } from "../clipboard";
import { bytes, count, duration, measured, number, plural, time, value } from "../format";
import { and, identifier, literal } from "../predicate";
import { changed, go, Link, useParameters, viewAddress } from "../router";
import { itemsOf, type Record_ } from "../waterfall";
import { Mark } from "./Mark";
import { Tabs } from "./Tabs";

type Properties = {
  /** Name of the stage; null for the run. */
  stage: string | null;
  record: Record_;
  events: [string, Record_][];
  typical: Typical | null | undefined;
};

const JSON_LIMIT = 200_000;

export function Details({ stage, record, events, typical }: Properties): JSX.Element {
  const state = useParameters();
  const log = Array.isArray(record.log_tail) ? (record.log_tail as string[]) : [];
  const tabs: [string, string][] = [
    ["attributes", "Attributes"],
    ...(record.exception ? ([["exception", "Exception"]] as [string, string][]) : []),
    ...(stage !== null ? ([["log", `Log tail (${log.length})`]] as [string, string][]) : []),
    ["events", `Events (${count(events.length)})`],
    ["json", "JSON"],
  ];
  const preferred = record.exception ? "exception" : "attributes";
  const tab = tabs.some(([id]) => id === state.tab) ? (state.tab as string) : preferred;
  return (
    <>
      <Tabs
        label="Details"
        tabs={tabs}
        selected={tab}
        onSelect={(id) => go(changed({ tab: id }), { replace: true })}
      />
      <div class="tab-panel" id="tab-panel" role="tabpanel" aria-labelledby={`tab-${tab}`} tabIndex={0}>
        {tab === "attributes" && <Attributes stage={stage} record={record} typical={typical} />}
        {tab === "exception" && (
          <Exception exception={record.exception as Record_} fingerprint={record.error_fingerprint} />
        )}
        {tab === "log" && <Log lines={log} record={record} />}
        {tab === "events" && <Events events={events} />}
        {tab === "json" && <Json record={record} />}
      </div>
    </>
  );
}

function text(each: unknown): string {
  return typeof each === "string" ? each : "";
}

function num(each: unknown): number | null {
  return typeof each === "number" ? each : null;
}

function object(each: unknown): Record_ | null {
  return each && typeof each === "object" && !Array.isArray(each) ? (each as Record_) : null;
}

function names(each: unknown): string {
  return Array.isArray(each) ? each.map(String).join(", ") : "";
}

function Attributes({ stage, record, typical }: Omit<Properties, "events">): JSX.Element {
  const attributes = Object.entries(object(record.attributes) ?? {});
  return (
    <div class="attribute-columns">
      <section>
        <h3>{stage === null ? "The run" : "The attempt"}</h3>
        <dl class="facts">{stage === null ? runFacts(record) : stageFacts(record, typical)}</dl>
      </section>
      <section>
        <h3>Attributes</h3>
        {attributes.length === 0 && <p class="muted">No attributes.</p>}
        <dl class="facts">
          {attributes.slice(0, 500).map(([name, each]) => (
            <Fact key={name} name={name}>
              <AttributeValue stage={stage} name={name} value={each} />
            </Fact>
          ))}
        </dl>
        {attributes.length > 500 && (
          <p class="muted">{count(attributes.length - 500)} more attributes are in the JSON.</p>
        )}
        {names(record.truncated) && <p class="muted">Truncated: {names(record.truncated)}</p>}
        {num(record.redacted) ? (
          <p class="muted">{plural(num(record.redacted) ?? 0, "value")} redacted.</p>
        ) : null}
      </section>
    </div>
  );
}

function Fact({ name, children }: { name: string; children: ComponentChildren }): JSX.Element | null {
  if (children === null || children === undefined || children === "") return null;
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}

/** A value, with a link to the rows that have the same one. */
function AttributeValue({
  stage,
  name,
  value: each,
}: {
  stage: string | null;
  name: string;
  value: unknown;
}): JSX.Element {
  const shown = typeof each === "number" ? measured(name, each) : value(each);
  const simple =
    typeof each === "string"
      ? literal(each)
      : typeof each === "number" || typeof each === "boolean"
        ? String(each)
        : null;
  if (simple === null || shown.length > 200) return <Long text={shown} />;
  const where = `${identifier(`attributes.${name}`)} = ${simple}`;
  const to =
    stage === null
      ? viewAddress("runs", { where })
      : viewAddress("explore", { over: "stages", where: and(`stage_name = ${literal(stage)}`, where) });
  return (
    <Link to={to} title={stage === null ? "Runs with this value" : "Explore the stages with this value"}>
      <bdi>{shown}</bdi>
    </Link>
  );
}

function Long({ text: each }: { text: string }): JSX.Element {
  if (each.length <= 200) return <bdi>{each}</bdi>;
  return (
    <details>
      <summary>
        <bdi>{each.slice(0, 200)}…</bdi> <span class="muted">({plural(each.length, "character")})</span>
      </summary>
      <pre dir="auto">{each.slice(0, JSON_LIMIT)}</pre>
    </details>
  );
}

function runFacts(record: Record_): JSX.Element {
  const ids = object(record.correlation_ids) ?? {};
  const resource = object(record.resource) ?? {};
  const process = object(record.process) ?? {};
  const link = (field: string, each: unknown) =>
    text(each) ? (
      <Link to={viewAddress("runs", { where: `${identifier(field)} = ${literal(text(each))}` })}>
        {text(each)}
      </Link>
    ) : (
      ""
    );
  return (
    <>
      <Fact name="run id">
        <code>{text(record.event_id)}</code>
      </Fact>
      <Fact name="started">{record.started_at ? time(text(record.started_at), "ms") : ""}</Fact>
      <Fact name="ended">{record.ended_at ? time(text(record.ended_at), "ms") : ""}</Fact>
      <Fact name="reason">{text(record.reason)}</Fact>
      <Fact name="organization">{link("org_id", ids.org_id)}</Fact>
      <Fact name="user">{link("user_id", ids.user_id)}</Fact>
      <Fact name="session">{link("session_id", ids.session_id)}</Fact>
      <Fact name="request">{link("request_id", ids.request_id)}</Fact>
      <Fact name="service version">{link("service_version", resource.service_version)}</Fact>
      <Fact name="commit">{text(resource.commit)}</Fact>
      <Fact name="environment">{text(resource.environment)}</Fact>
      <Fact name="host">
        {resource.host
          ? `${text(resource.host)}, process ${String(resource.pid)}, ${text(resource.runtime)}`
          : ""}
      </Fact>
      <Fact name="peak memory">
        {num(process.memory_peak_bytes) ? bytes(num(process.memory_peak_bytes)) : ""}
      </Fact>
      <Fact name="CPU">
        {num(process.cpu_percent) !== null ? `${number(num(process.cpu_percent))}%` : ""}
      </Fact>
      <Fact name="critical path">
        {Array.isArray(record.critical_path) && record.critical_path.length
          ? `${record.critical_path.map(String).join(" → ")} (${duration(num(record.critical_path_ms))})`
          : ""}
      </Fact>
      <Fact name="trace">{text(object(record.trace)?.trace_id)}</Fact>
    </>
  );
}

function stageFacts(record: Record_, typical: Typical | null | undefined): JSX.Element {
  const stream = object(record.stream);
  const worker = object(record.worker);
  const items = object(record.items);
  return (
    <>
      <Fact name="status">
        <Mark status={text(record.status)} />
      </Fact>
      <Fact name="attempt">
        {num(record.attempts) ? `${String(record.attempt)} of ${String(record.attempts)}` : ""}
      </Fact>
      <Fact name="duration">
        {num(record.attempt) === 0 ? "" : duration(num(record.duration_ms))}
        {typical && typical.p50_ms !== null && num(record.attempt) !== 0 && (
          <span class="muted">
            {" "}
            (p50 {duration(typical.p50_ms)}, p95 {duration(typical.p95_ms)}, {plural(typical.rows, "row")}
            )
          </span>
        )}
      </Fact>
      <Fact name="queued">{num(record.queue_ms) ? duration(num(record.queue_ms)) : ""}</Fact>
      <Fact name="retry delay">
        {num(record.retry_after_ms) !== null ? duration(num(record.retry_after_ms)) : ""}
      </Fact>
      <Fact name="reason">{text(record.reason)}</Fact>
      <Fact name="error">{text(record.error) ? <Long text={text(record.error)} /> : ""}</Fact>
      <Fact name="depends on">{names(record.dependencies)}</Fact>
      <Fact name="missing inputs">{names(record.missing_inputs)}</Fact>
      <Fact name="returned">{names(record.data_keys)}</Fact>
      <Fact name="items">{items ? itemsOf(record) : ""}</Fact>
      <Fact name="item durations">
        {items && num(items.p50_ms) !== null
          ? `p50 ${duration(num(items.p50_ms))}, p95 ${duration(num(items.p95_ms))}, slowest ${duration(num(items.max_ms))}${items.slowest ? ` (${text(items.slowest)})` : ""}`
          : ""}
      </Fact>
      <Fact name="failed items">
        {items && Array.isArray(items.failures) && items.failures.length ? (
          <ul>
            {(items.failures as Record_[]).map((each, index) => (
              <li key={index}>
                <code>{text(each.key)}</code> {text(each.type)}: {text(each.message)}
              </li>
            ))}
          </ul>
        ) : (
          ""
        )}
      </Fact>
      <Fact name="stream">
        {stream
          ? `${plural(num(stream.chunks) ?? 0, "chunk")}${num(stream.bytes) !== null ? `, ${bytes(num(stream.bytes))}` : ""}, first after ${duration(num(stream.first_chunk_ms))}, blocked for ${duration(num(stream.blocked_ms))}`
          : ""}
      </Fact>
      <Fact name="event loop blocked">
        {num(record.loop_blocked_ms) ? duration(num(record.loop_blocked_ms)) : ""}
      </Fact>
      <Fact name="worker">
        {worker
          ? [
              text(worker.kind),
              text(worker.host),
              num(worker.pid) !== null && `process ${String(worker.pid)}`,
            ]
              .filter(Boolean)
              .join(", ")
          : ""}
      </Fact>
      <Fact name="started">
        {record.started_at && num(record.attempt) !== 0 ? time(text(record.started_at), "ms") : ""}
      </Fact>
    </>
  );
}

const RELATIONS: Record<string, string> = {
  cause: "caused by",
  context: "while handling",
  group: "member of the group",
};

function Exception({ exception, fingerprint }: { exception: Record_; fingerprint: unknown }): JSX.Element {
  return (
    <>
      {text(fingerprint) && (
        <p>
          <Link to={viewAddress("runs", { where: `error_fingerprint = ${literal(text(fingerprint))}` })}>
            Runs with the same error
          </Link>
        </p>
      )}
      <ExceptionTree exception={exception} depth={0} />
    </>
  );
}

function ExceptionTree({ exception, depth }: { exception: Record_; depth: number }): JSX.Element {
  const stack = Array.isArray(exception.stack) ? (exception.stack as string[]) : [];
  const notes = Array.isArray(exception.notes) ? (exception.notes as string[]) : [];
  const chain = Array.isArray(exception.chain) ? (exception.chain as Record_[]) : [];
  const relation = RELATIONS[text(exception.relation)];
  return (
    <div class="exception">
      {depth > 0 && <div class="muted small">{relation ?? "related"}</div>}
      <div>
        <strong class="mono">{text(exception.type)}</strong>: <Long text={text(exception.message)} />
      </div>
      {notes.map((note, index) => (
        <div key={index} class="muted">
          note: {note}
        </div>
      ))}
      {stack.length > 0 && (
        <ol class="stack-frames mono">
          {stack.map((frame, index) => (
            <li key={index}>{frame}</li>
          ))}
        </ol>
      )}
      {depth < 20 &&
        chain.map((each, index) => <ExceptionTree key={index} exception={each} depth={depth + 1} />)}
    </div>
  );
}

function Log({ lines, record }: { lines: string[]; record: Record_ }): JSX.Element {
  if (lines.length === 0) return <p class="muted">No log lines were recorded for this attempt.</p>;
  return (
    <>
      <p class="muted">
        The last {plural(lines.length, "line")}
        {num(record.log_warnings) || num(record.log_errors)
          ? `; ${plural(num(record.log_warnings) ?? 0, "warning")}, ${plural(num(record.log_errors) ?? 0, "error")} in total`
          : ""}
      </p>
      <pre dir="auto">{lines.join("\n")}</pre>
    </>
  );
}

function Events({ events }: { events: [string, Record_][] }): JSX.Element {
  if (events.length === 0) return <p class="muted">No custom events were emitted.</p>;
  return (
    <ul class="plain-list">
      {events.slice(0, 200).map(([type, data], index) => (
        <li key={index}>
          <details>
            <summary>
              <strong>{type}</strong>{" "}
              <span class="muted">{text(data.emitted_at) ? time(text(data.emitted_at), "ms") : ""}</span>
            </summary>
            <pre dir="auto">{JSON.stringify(data, null, 2).slice(0, JSON_LIMIT)}</pre>
          </details>
        </li>
      ))}
      {events.length > 200 && <li class="muted">{count(events.length - 200)} more events</li>}
    </ul>
  );
}

function Json({ record }: { record: Record_ }): JSX.Element {
  const all = JSON.stringify(record, null, 2);
  return (
    <>
      <p class="row">
        <button type="button" onClick={() => void copy(all, "the JSON")}>
          Copy
        </button>
        {all.length > JSON_LIMIT && (
          <span class="muted">
            The first {count(JSON_LIMIT)} of {count(all.length)} characters; the copy contains all.
          </span>
        )}
      </p>
      <pre dir="auto">{all.slice(0, JSON_LIMIT)}</pre>
    </>
  );
}
