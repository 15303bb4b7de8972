/** Requests to the server, and their errors. */

import type { Problem } from "./api";
import { keyOf, savedPage, savedResponse } from "./saved";
import { Store } from "./store";

/** A response with an error status, or no response. */
export class RequestError extends Error {
  constructor(
    readonly problem: Problem,
    readonly offline = false,
  ) {
    super(problem.title);
  }
}

/** Set when the server no longer accepts the token of this page. */
export const expired = new Store<boolean>(false);

/** The newest filter that the server rejected. */
export const rejectedFilter = new Store<string>("");

/** Whether the last request failed because the server did not answer. */
export const offline = new Store<boolean>(false);

// A newer request of the same panel of this tab replaces its predecessor in the server.
const tab = crypto.randomUUID?.() ?? String(Math.random()).slice(2);

/** Parameters of a request; empty values are left out. */
export type Query = Record<string, string | number | undefined>;

function cleaned(query: Query): Record<string, string> {
  const entries = Object.entries(query).map(([name, value]) => [
    name,
    value === undefined ? "" : String(value),
  ]);
  return Object.fromEntries(entries.filter(([, value]) => value !== ""));
}

/** Return the key of a request; see `keyOf`. */
export function requestKey(path: string, query: Query): string {
  return keyOf(path, cleaned(query));
}

/**
 * Request a resource of the server.
 *
 * @param panel Name of the panel that shows it.
 * @param path Such as `api/runs`.
 * @throws RequestError The server reported an error, or did not answer.
 */
export async function request<T>(
  panel: string,
  path: string,
  query: Query,
  signal?: AbortSignal,
): Promise<T> {
  const values = cleaned(query);
  if (savedPage) {
    const body = await savedResponse(keyOf(path, values));
    if (body === undefined) throw new RequestError(notSaved);
    return body as T;
  }
  const response = await send(panel, path, values, signal);
  if (response.ok) return (await response.json()) as T;
  const problem = await readProblem(response);
  if (problem.reason === "expired") expired.set(true);
  if (problem.reason === "invalid" && values.where) rejectedFilter.set(values.where);
  if (problem.reason === "snapshot" && values.snapshot) {
    const { snapshot: _, ...rest } = values;
    return request<T>(panel, path, rest, signal);
  }
  throw new RequestError(problem);
}

/**
 * Perform an action of the server.
 *
 * @throws RequestError The server reported an error, or did not answer.
 */
export async function post<T>(path: string, body: unknown): Promise<T> {
  const response = await attempt(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  if (response.ok) return (await response.json()) as T;
  throw new RequestError(await readProblem(response));
}

function send(
  panel: string,
  path: string,
  values: Record<string, string>,
  signal?: AbortSignal,
): Promise<Response> {
  const search = new URLSearchParams(values);
  return attempt(search.size ? `${path}?${search}` : path, {
    headers: { "X-Stageflow-Panel": `${tab}/${panel}` },
    ...(signal ? { signal } : {}),
  });
}

async function attempt(address: string, options: RequestInit): Promise<Response> {
  try {
    const response = await fetch(address, options);
    offline.set(false);
    return response;
  } catch (error) {
    if (options.signal?.aborted) throw error;
    offline.set(true);
    throw new RequestError(noAnswer, true);
  }
}

async function readProblem(response: Response): Promise<Problem> {
  try {
    const body = (await response.json()) as Partial<Problem>;
    if (typeof body.title === "string")
      return { hint: null, status: response.status, reason: "internal", ...body } as Problem;
  } catch {
    // Not from stageflow, but for example from a proxy.
  }
  return {
    title: `The server responded with status ${response.status}.`,
    status: response.status,
    hint: null,
    reason: response.status === 401 ? "expired" : "internal",
  };
}

const noAnswer: Problem = {
  title: "The server does not respond.",
  status: 0,
  hint: "Check that `stageflow ui` is still running. The page retries automatically.",
  reason: "internal",
};

const notSaved: Problem = {
  title: "This saved page does not contain this part.",
  status: 0,
  hint: "Open the run in `stageflow ui` to see it.",
  reason: "internal",
};
