/** What the server reports by itself: new snapshots, and the runs in progress. */

import type { Runs, SnapshotInfo } from "./api";
import { expired, offline, request } from "./client";
import { savedPage } from "./saved";
import { live } from "./settings";
import { Store } from "./store";

/** The newest snapshot. */
export const snapshot = new Store<SnapshotInfo | null>(null);

/** The runs in progress, as the event stream reported them last; null without a stream. */
export const inProgress = new Store<Runs | null>(null);

/** Increases when panels that follow new records have to load again; never while live updates are off. */
export const followed = new Store<number>(0);

/** The same for panels with expensive queries. */
export const followedSlowly = new Store<number>(0);

const POLL_MS = 5000;
const FOLLOW_MS = 5000;
const FOLLOW_SLOWLY_MS = 30_000;

let followedNumber = 0;
let followedAt = 0;
let slowlyAt = 0;
let timer = 0;

// A busy journal has several snapshots per second; nobody can read charts that change that often.
function follow(): void {
  clearTimeout(timer);
  const number = snapshot.value?.number ?? 0;
  if (!live.value || document.hidden || number === followedNumber) return;
  const wait = followedAt + FOLLOW_MS - Date.now();
  if (wait > 0) {
    timer = window.setTimeout(follow, wait);
    return;
  }
  followedAt = Date.now();
  followedNumber = number;
  followed.set(followed.value + 1);
  if (followedAt - slowlyAt < FOLLOW_SLOWLY_MS) return;
  slowlyAt = followedAt;
  followedSlowly.set(followedSlowly.value + 1);
}

function receive(info: SnapshotInfo): void {
  const before = snapshot.value;
  if (before && before.version !== info.version) location.reload();
  snapshot.set(info);
  if (before === null) {
    // The panels are loading the newest snapshot already.
    followedAt = slowlyAt = Date.now();
    followedNumber = info.number;
  } else follow();
}

async function poll(): Promise<void> {
  try {
    receive(await request<SnapshotInfo>("snapshot", "api/snapshot", {}));
  } catch {
    // `client` records that the server is gone or the token expired.
  }
}

function connect(): boolean {
  if (typeof SharedWorker === "undefined") return false;
  let worker: SharedWorker;
  try {
    worker = new SharedWorker("worker.js", "stageflow");
  } catch {
    return false;
  }
  let connected = false;
  worker.port.onmessage = ({ data }: MessageEvent) => {
    if (data.type === "snapshot") receive(data.data as SnapshotInfo);
    if (data.type === "live") inProgress.set(data.data as Runs);
    if (data.type === "state") {
      connected = data.connected as boolean;
      if (connected) offline.set(false);
      else inProgress.set(null);
    }
  };
  worker.port.start();
  addEventListener("pagehide", () => worker.port.postMessage("leave"));
  addEventListener("pageshow", (event) => event.persisted && location.reload());
  setInterval(() => !connected && !expired.value && poll(), POLL_MS);
  return true;
}

export function start(): void {
  void poll();
  if (savedPage) return;
  live.subscribe(follow);
  document.addEventListener("visibilitychange", follow);
  if (!connect()) setInterval(() => !document.hidden && !expired.value && poll(), POLL_MS);
}
