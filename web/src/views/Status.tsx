/** The state of the alerts, the journal, the archive and the server. */

import type { ComponentChildren, JSX } from "preact";
import type { IncidentRecord, SilenceRequest, Status as Data } from "../api";
import { post, RequestError } from "../client";
import { Ago } from "../clock";
import { bytes, count, duration, plural, time } from "../format";
import { section, table } from "../markdown";
import { usePage } from "../page";
import { Menu } from "../parts/Menu";
import { Panel } from "../parts/Panel";
import { announce } from "../parts/Toast";
import { useQuery } from "../query";
import { savedPage } from "../saved";
import { useStore } from "../store";
import { followed, snapshot } from "../stream";

type Alert = Record<string, unknown>;

export function Status(): JSX.Element {
  const query = useQuery<Data>("status", "api/status", {}, followed);
  const { data } = query;
  const sentence = data ? describe(data) : "Status";

  usePage({
    title: "Status",
    command: "stageflow doctor",
    markdown: () =>
      section(
        `# ${sentence}`,
        data &&
          table(
            ["alert", "status", "summary", "error"],
            data.alerts.map((alert) => [
              text(alert.name),
              text(alert.status),
              text(alert.summary),
              text(alert.error),
            ]),
          ),
        data &&
          data.incidents.length > 0 &&
          `## Incidents\n\n${table(
            ["rule", "status", "fired", "ended", "worst value"],
            data.incidents.map((each) => [
              each.rule,
              each.status,
              time(each.fired_at),
              each.ended_at ? time(each.ended_at) : "",
              each.summary,
            ]),
          )}`,
        data && data.damage.map((each) => `- ${each}`).join("\n"),
      ),
  });

  return (
    <div class="stack">
      <div class="headline">
        <h1>{sentence}</h1>
      </div>
      <Panel flush title="Alerts" query={query} height={120}>
        {(status) =>
          status.alerts_error ? (
            <p class="padded">{status.alerts_error}</p>
          ) : (
            <Alerts alerts={status.alerts} reload={query.reload} />
          )
        }
      </Panel>
      {data && data.incidents.length > 0 && (
        <Panel flush secondary title="Incidents" query={query} height={120}>
          {(status) => <Incidents incidents={status.incidents} />}
        </Panel>
      )}
      {data && data.damage.length > 0 && (
        <section class="panel">
          <header>
            <h2>{plural(data.damage.length, "damaged file")}</h2>
          </header>
          <div class="body">
            <ul class="plain-list">
              {data.damage.map((each) => (
                <li key={each} class="is-fail">
                  <bdi>{each}</bdi>
                </li>
              ))}
            </ul>
            <p class="muted after">
              <code>stageflow doctor</code> checks every line and file, and states what can be repaired.
            </p>
          </div>
        </section>
      )}
      <div class="columns-2">
        <Panel flush secondary title="Writers" query={query} height={120}>
          {(status) =>
            status.writers.length ? (
              <table class="rows" aria-label="Writers">
                <thead>
                  <tr>
                    <th scope="col">Process</th>
                    <th scope="col">State</th>
                    <th scope="col" class="number">
                      Segments
                    </th>
                    <th scope="col" class="number">
                      Size
                    </th>
                  </tr>
                </thead>
                <tbody>
                  {status.writers.map((writer) => (
                    <tr key={writer.name}>
                      <td class="mono">{writer.name}</td>
                      <td>
                        {writer.open ? (
                          <State kind="ok">● writing</State>
                        ) : (
                          <State kind="skip">○ closed</State>
                        )}
                      </td>
                      <td class="number">{count(writer.segments)}</td>
                      <td class="number">{bytes(writer.bytes)}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
            ) : (
              <p class="muted padded">No process is writing to this journal.</p>
            )
          }
        </Panel>
        <Panel flush secondary title="Readers of the journal" query={query} height={120}>
          {(status) =>
            status.cursors.length ? (
              <table class="rows" aria-label="Readers of the journal">
                <thead>
                  <tr>
                    <th scope="col">Cursor</th>
                    <th scope="col" class="number">
                      Not read yet
                    </th>
                    <th scope="col">Problem</th>
                  </tr>
                </thead>
                <tbody>
                  {status.cursors.map((cursor) => (
                    <tr key={cursor.name}>
                      <td>{cursor.name}</td>
                      <td class="number">{bytes(cursor.lag_bytes)}</td>
                      <td class="is-fail">{cursor.error}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
            ) : (
              <p class="muted padded">This journal has no readers.</p>
            )
          }
        </Panel>
        <Panel secondary title="Archive" query={query} height={120}>
          {(status) => <Facts rows={status.archive} empty="This journal has no archive." />}
        </Panel>
        <Panel secondary title="Server" query={query} height={120}>
          {(status) => (
            <Facts
              empty=""
              rows={[
                ["records", status.source],
                ["records read", `${duration(status.age_s * 1000)} ago`],
                ["dropped events", count(status.dropped)],
                ["open pages", count(status.viewers)],
                ["running queries", count(status.queries)],
                ["cached results", bytes(status.cache_bytes)],
              ]}
            />
          )}
        </Panel>
      </div>
    </div>
  );
}

function text(each: unknown): string {
  return typeof each === "string" ? each : "";
}

function State({ kind, children }: { kind: string; children: ComponentChildren }): JSX.Element {
  return <span class={`is-${kind} nowrap`}>{children}</span>;
}

const ALERT_KINDS: Record<string, [kind: string, shape: string]> = {
  firing: ["fail", "✕"],
  pending: ["retry", "▲"],
  inactive: ["ok", "●"],
};

function Alerts({ alerts, reload }: { alerts: Alert[]; reload: () => void }): JSX.Element {
  const info = useStore(snapshot);
  const actions = Boolean(info?.actions) && !savedPage;
  if (alerts.length === 0) return <p class="muted padded">There are no alert rules.</p>;
  return (
    <table class="rows" aria-label="Alerts">
      <thead>
        <tr>
          <th scope="col">Rule</th>
          <th scope="col">Status</th>
          <th scope="col">Measured</th>
          <th scope="col" class="medium-only">
            Since
          </th>
          <th scope="col" class="wide-only">
            Notified
          </th>
          <th scope="col" class="wide-only">
            Evaluated
          </th>
          <th scope="col" class="medium-only">
            Silence
          </th>
          {actions && (
            <th scope="col">
              <span class="unseen">Actions</span>
            </th>
          )}
        </tr>
      </thead>
      <tbody>
        {alerts.map((alert) => (
          <AlertLine key={text(alert.name)} alert={alert} actions={actions} reload={reload} />
        ))}
      </tbody>
    </table>
  );
}

function AlertLine({
  alert,
  actions,
  reload,
}: {
  alert: Alert;
  actions: boolean;
  reload: () => void;
}): JSX.Element {
  const [kind, shape] = ALERT_KINDS[text(alert.status)] ?? ["skip", "○"];
  const silence = alert.silence as Alert | null;
  const incident = alert.incident as Alert | null;
  return (
    <tr>
      <td>
        <bdi>{text(alert.name)}</bdi>
      </td>
      <td>
        <State kind={kind}>
          {shape} {text(alert.status)}
        </State>
      </td>
      <td>
        {alert.error ? <span class="is-fail">{text(alert.error)}</span> : <bdi>{text(alert.summary)}</bdi>}
      </td>
      <td class="medium-only nowrap">{alert.began ? <Ago at={text(alert.began)} /> : "–"}</td>
      <td class="wide-only nowrap">
        {incident?.notified_at ? (
          <>
            <Ago at={text(incident.notified_at)} />{" "}
            <span class="muted">({plural(Number(incident.notices), "notification")})</span>
          </>
        ) : (
          "–"
        )}
      </td>
      <td class="wide-only nowrap">{alert.evaluated_at ? <Ago at={text(alert.evaluated_at)} /> : "never"}</td>
      <td class="medium-only">
        {silence ? (
          <bdi>
            until {time(text(silence.until), "minute")}: {text(silence.reason)}
            {text(silence.by) && <span class="muted"> (by {text(silence.by)})</span>}
          </bdi>
        ) : (
          "–"
        )}
      </td>
      {actions && (
        <td class="number">
          <SilenceMenu rule={text(alert.name)} silenced={silence !== null} reload={reload} />
        </td>
      )}
    </tr>
  );
}

const INCIDENT_KINDS: Record<IncidentRecord["status"], [kind: string, shape: string]> = {
  firing: ["fail", "✕"],
  resolved: ["ok", "●"],
  removed: ["skip", "○"],
};

function Incidents({ incidents }: { incidents: IncidentRecord[] }): JSX.Element {
  return (
    <table class="rows" aria-label="Incidents">
      <thead>
        <tr>
          <th scope="col">Rule</th>
          <th scope="col">Status</th>
          <th scope="col">Worst value</th>
          <th scope="col" class="medium-only">
            Fired
          </th>
          <th scope="col">Lasted</th>
          <th scope="col" class="wide-only">
            Delivered
          </th>
          <th scope="col" class="wide-only">
            Silence
          </th>
        </tr>
      </thead>
      <tbody>
        {incidents.map((each) => {
          const [kind, shape] = INCIDENT_KINDS[each.status];
          const silence = each.silences.at(-1);
          return (
            <tr key={each.id}>
              <td>
                <bdi>{each.rule}</bdi>
              </td>
              <td>
                <State kind={kind}>
                  {shape} {each.status}
                </State>
              </td>
              <td>
                <bdi>{each.summary}</bdi>
              </td>
              <td class="medium-only nowrap">
                <Ago at={each.fired_at} />
              </td>
              <td class="nowrap">
                {each.ended_at ? duration(Date.parse(each.ended_at) - Date.parse(each.fired_at)) : "–"}
              </td>
              <td class="wide-only">
                {Object.entries(each.receivers).map(([name, counters]) => (
                  <div key={name} class={counters.sent ? "" : "is-fail"}>
                    <bdi>{name}</bdi>: {counters.sent ? plural(counters.sent, "notification") : counters.last_error}
                  </div>
                ))}
                {Object.keys(each.receivers).length === 0 && "–"}
              </td>
              <td class="wide-only">
                {silence ? (
                  <bdi>
                    {silence.reason}
                    {silence.by && <span class="muted"> (by {silence.by})</span>}
                  </bdi>
                ) : (
                  "–"
                )}
              </td>
            </tr>
          );
        })}
      </tbody>
    </table>
  );
}

function SilenceMenu({
  rule,
  silenced,
  reload,
}: {
  rule: string;
  silenced: boolean;
  reload: () => void;
}): JSX.Element {
  const silence = async (body: SilenceRequest) => {
    try {
      await post<Data>("api/silence", body);
      announce(
        body.hours
          ? `${rule} is silenced for ${plural(body.hours, "hour")}`
          : `The silence of ${rule} has ended`,
      );
      reload();
    } catch (error) {
      announce(error instanceof RequestError ? error.problem.title : "The alert could not be silenced");
    }
  };
  return (
    <Menu
      end
      label="Silence"
      name={`Silence ${rule}`}
      items={
        silenced
          ? [
              {
                label: "End the silence",
                run: () => void silence({ rule, hours: 0, reason: "ended in the web UI" }),
              },
            ]
          : []
      }
      form={(close) => (
        <form
          onSubmit={(event) => {
            event.preventDefault();
            const fields = new FormData(event.currentTarget);
            close();
            void silence({
              rule,
              hours: Number(fields.get("hours")),
              reason: String(fields.get("reason")).trim(),
            });
          }}
        >
          <label>
            Hours
            <input name="hours" type="number" min="0.25" max="720" step="0.25" defaultValue="2" required />
          </label>
          <label>
            Reason
            <input name="reason" maxLength={500} pattern=".*\S.*" required />
          </label>
          <button type="submit" class="primary">
            Silence the notifications
          </button>
        </form>
      )}
    />
  );
}

function Facts({ rows, empty }: { rows: [string, string][]; empty: string }): JSX.Element {
  if (rows.length === 0) return <p class="muted">{empty}</p>;
  return (
    <dl class="facts">
      {rows.map(([name, each]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>
            <bdi>{each}</bdi>
          </dd>
        </div>
      ))}
    </dl>
  );
}

function describe(data: Data): string {
  const firing = data.alerts.filter((alert) => alert.status === "firing").length;
  const failing = data.alerts.filter((alert) => alert.error).length;
  const behind = data.cursors.filter((cursor) => cursor.error).length;
  const problems = [
    firing && plural(firing, "alert is firing", "alerts are firing"),
    failing && plural(failing, "alert rule failed", "alert rules failed"),
    data.damage.length && plural(data.damage.length, "file is damaged", "files are damaged"),
    data.dropped && plural(data.dropped, "event was dropped", "events were dropped"),
    behind && plural(behind, "reader has a problem", "readers have a problem"),
  ].filter(Boolean);
  if (problems.length) return problems.join(", ");
  const open = data.writers.filter((writer) => writer.open).length;
  const alerts = data.alerts.some((alert) => alert.evaluated_at) ? "No alert is firing" : "Alerts are not evaluated";
  return `${alerts}; nothing is lost or damaged; ${open ? plural(open, "process is writing", "processes are writing") : "no process is writing now"}`;
}
