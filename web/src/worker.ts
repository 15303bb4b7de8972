/**
 * A shared worker: one event stream for all tabs of this browser.
 *
 * Browsers allow six connections to a host, so that one stream for each tab would block the seventh tab.
 */

type Message = { type: "snapshot" | "live"; data: unknown } | { type: "state"; connected: boolean };

const ports = new Set<MessagePort>();
const newest = new Map<string, Message>();
let source: EventSource | null = null;

function send(message: Message): void {
  newest.set(message.type, message);
  for (const port of ports) port.postMessage(message);
}

function open(): void {
  source?.close();
  source = new EventSource("api/stream");
  source.addEventListener("open", () => send({ type: "state", connected: true }));
  for (const type of ["snapshot", "live"] as const) {
    source.addEventListener(type, (event) =>
      send({ type, data: JSON.parse((event as MessageEvent<string>).data) }),
    );
  }
  source.addEventListener("error", () => {
    send({ type: "state", connected: false });
    // A browser reconnects after a lost connection, but not after an error status.
    if (source?.readyState === EventSource.CLOSED) setTimeout(() => ports.size && open(), 5000);
  });
}

const scope = self as unknown as { onconnect: (event: MessageEvent) => void };

scope.onconnect = (event) => {
  const port = event.ports[0];
  if (!port) return;
  ports.add(port);
  port.onmessage = ({ data }) => {
    if (data === "leave") ports.delete(port);
    if (ports.size === 0) {
      source?.close();
      source = null;
    }
  };
  for (const message of newest.values()) port.postMessage(message);
  if (!source) open();
};
