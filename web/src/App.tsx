/** The page around the views. */

import type { JSX } from "preact";
import { expired, offline } from "./client";
import { count, time, zoneName } from "./format";
import { Icon, type IconName } from "./icons";
import { FilterBar } from "./parts/FilterBar";
import { type Item, Menu } from "./parts/Menu";
import { Share } from "./parts/Share";
import { TimeRange } from "./parts/TimeRange";
import { Toast } from "./parts/Toast";
import { Link, useParameters, type View, viewAddress, viewOf } from "./router";
import { savedPage } from "./saved";
import { live, type Theme, theme, zone } from "./settings";
import { useStore } from "./store";
import { snapshot } from "./stream";
import { Compare } from "./views/Compare";
import { Errors } from "./views/Errors";
import { Explore } from "./views/Explore";
import { Overview } from "./views/Overview";
import { Run } from "./views/Run";
import { Runs } from "./views/Runs";
import { Stages } from "./views/Stages";
import { Status } from "./views/Status";

const RAIL: [View, string, IconName][] = [
  ["overview", "Overview", "overview"],
  ["explore", "Explore", "explore"],
  ["runs", "Runs", "runs"],
  ["errors", "Errors", "errors"],
  ["stages", "Stages", "stages"],
  ["status", "Status", "status"],
];

const PARENT: Partial<Record<View, View>> = { run: "runs", compare: "runs" };

const COMPONENTS: Record<View, () => JSX.Element> = {
  overview: Overview,
  explore: Explore,
  runs: Runs,
  errors: Errors,
  stages: Stages,
  status: Status,
  run: Run,
  compare: Compare,
};

export function App(): JSX.Element {
  const view = viewOf(useParameters());
  useStore(zone);
  const isExpired = useStore(expired);
  const Content = COMPONENTS[view];

  if (isExpired) return <Expired />;
  return (
    <div class="shell">
      <a class="skip-link" href="#content" onClick={skip}>
        Skip to content
      </a>
      <nav class="rail" aria-label="Views">
        {RAIL.map(([name, label, icon]) => (
          <Link
            key={name}
            to={viewAddress(name)}
            aria-current={(PARENT[view] ?? view) === name ? "page" : undefined}
          >
            <Icon name={icon} />
            <span>{label}</span>
          </Link>
        ))}
      </nav>
      <div class="column">
        <header class="top">
          <TimeRange />
          <FilterBar />
          <span class="spring" />
          {!savedPage && <LiveSwitch />}
          <Share />
          <Settings />
        </header>
        <Notices />
        <main id="content" tabIndex={-1}>
          <Content key={view} />
        </main>
      </div>
      <Toast />
    </div>
  );
}

function skip(event: MouseEvent): void {
  event.preventDefault();
  document.getElementById("content")?.focus();
}

function LiveSwitch(): JSX.Element {
  const on = useStore(live);
  const gone = useStore(offline);
  const info = useStore(snapshot);
  const isWritten = info?.writing || Boolean(info?.in_progress);
  const state = gone
    ? "No connection"
    : !on
      ? "New runs do not change the page"
      : isWritten
        ? "New runs appear automatically"
        : "No process is writing to the journal now; new runs appear by themselves";
  const title = info
    ? `${state}. ${info.source}: ${count(info.runs)} runs, read ${time(info.read_at)} ${zoneName()}`
    : state;
  return (
    <button
      type="button"
      role="switch"
      aria-checked={on}
      class={`live-switch ${gone ? "waiting" : ""}`}
      title={title}
      onClick={() => live.set(!on)}
    >
      <span class="dot" aria-hidden="true" />
      {on ? "Live" : "Paused"}
    </button>
  );
}

function Settings(): JSX.Element {
  const colours = useStore(theme);
  const times = useStore(zone);
  const choose = (value: Theme, label: string): Item => ({
    label,
    checked: colours === value,
    run: () => theme.set(value),
  });
  return (
    <Menu
      end
      name="Settings"
      label={<Icon name="settings" />}
      title="Theme and time zone"
      items={[
        { title: "Colours" },
        choose("auto", "System setting"),
        choose("light", "Light"),
        choose("dark", "Dark"),
        "line",
        { title: "Times" },
        {
          label: `Local time (${zoneName("local")})`,
          checked: times === "local",
          run: () => zone.set("local"),
        },
        { label: "UTC", checked: times === "utc", run: () => zone.set("utc") },
      ]}
    />
  );
}

function Notices(): JSX.Element {
  const gone = useStore(offline);
  const info = useStore(snapshot);
  return (
    <>
      {savedPage && (
        <div class="notice">
          Saved at {time(savedPage.saved_at)} {zoneName()}. This file contains only this view; it does not
          connect to a server.
        </div>
      )}
      {gone && (
        <div class="notice bad" role="status">
          <strong>The server does not respond.</strong> The page shows what it loaded before, and tries again
          every 5 s.
        </div>
      )}
      {info?.archive_error && (
        <div class="notice" role="status">
          <strong>The archive is not included.</strong> {info.archive_error}
        </div>
      )}
    </>
  );
}

function Expired(): JSX.Element {
  return (
    <main class="full-page">
      <h1>The token is missing or has expired</h1>
      <p>
        Each start of the server creates a new token, which its address contains. Open the address that{" "}
        <code>stageflow ui</code> printed in its terminal, or start it with <code>stageflow ui --open</code>.
      </p>
      <p class="muted">
        The address of this page stays the same; after that, this view opens again when you load the page.
      </p>
      <p>
        <button type="button" class="primary" onClick={() => location.reload()}>
          Reload the page
        </button>
      </p>
    </main>
  );
}
