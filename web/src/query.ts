/** A hook that keeps a panel up to date. */

import { useEffect, useRef, useState } from "preact/hooks";
import type { Problem } from "./api";
import { offline, type Query, request, RequestError, requestKey } from "./client";
import { savedPage } from "./saved";
import { Store, useStore } from "./store";

export type Loaded<T> = {
  /** The newest response; while the next one is loading, still the previous one. */
  data: T | null;
  /** Why the last request failed. */
  problem: Problem | null;
  loading: boolean;
  /** Whether `data` belongs to earlier parameters. */
  stale: boolean;
  /** When `data` was received, in milliseconds since the epoch. */
  receivedAt: number;
  /** When the request that is loading started. */
  startedAt: number;
  /** Whether `data` lacks the part that takes longer, which is still loading; see `useExplained`. */
  provisional: boolean;
  reload: () => void;
  cancel: () => void;
};

/** Responses that the page shows now, for "save as HTML". */
export const shown = new Map<string, { key: string; body: unknown }>();

const NEVER = new Store<number>(0);

type State<T> = Omit<Loaded<T>, "reload" | "cancel" | "provisional"> & { key: string };

const NOTHING = {
  data: null,
  problem: null,
  loading: true,
  stale: false,
  receivedAt: 0,
  startedAt: 0,
  key: "",
};

/**
 * Request a resource, and request it again when its parameters change.
 *
 * @param panel A name that is unique in the page.
 * @param path Such as `api/runs`; null while the panel needs nothing.
 * @param follow The store whose changes mean that it has to be requested again; null for none.
 */
export function useQuery<T>(
  panel: string,
  path: string | null,
  query: Query,
  follow: Store<number> | null = null,
): Loaded<T> {
  const [state, setState] = useState<State<T>>(NOTHING);
  const [attempt, setAttempt] = useState(0);
  const current = useStore(follow ?? NEVER);
  const key = path === null ? "" : requestKey(path, query);
  // A panel that stops following keeps what it shows, and loads nothing because of that.
  const last = useRef(current);
  if (follow) last.current = current;
  const version = last.current;
  const controller = useRef<AbortController | null>(null);

  useEffect(() => {
    if (path === null) {
      shown.delete(panel);
      setState(NOTHING);
      return undefined;
    }
    const abort = new AbortController();
    controller.current = abort;
    setState((before) => ({
      ...before,
      loading: true,
      problem: before.key === key ? before.problem : null,
      stale: before.data !== null && before.key !== key,
      startedAt: Date.now(),
    }));
    request<T>(panel, path, query, abort.signal).then(
      (data) => {
        if (abort.signal.aborted) return;
        shown.set(panel, { key, body: data });
        setState({
          data,
          problem: null,
          loading: false,
          stale: false,
          receivedAt: Date.now(),
          startedAt: 0,
          key,
        });
      },
      (error: unknown) => {
        if (abort.signal.aborted) return;
        const problem = problemOf(error);
        if (problem?.reason === "replaced") return;
        setState((before) => ({
          ...before,
          data: before.key === key ? before.data : null,
          problem,
          loading: false,
          stale: false,
          key,
        }));
      },
    );
    return () => abort.abort();
    // The key stands for the path and the query.
  }, [panel, key, version, attempt]);

  useEffect(() => () => void shown.delete(panel), [panel]);

  // After the server was gone, ask again as soon as it answers.
  useEffect(
    () =>
      offline.subscribe(
        (gone) => !gone && state.problem?.status === 0 && !savedPage && setAttempt((n) => n + 1),
      ),
    [state.problem],
  );

  return {
    ...state,
    provisional: false,
    reload: () => setAttempt((count) => count + 1),
    cancel: () => {
      controller.current?.abort();
      setState((before) => ({
        ...before,
        loading: false,
        stale: false,
        problem: before.data ? null : CANCELLED,
      }));
    },
  };
}

/**
 * Request a resource twice: at once, and with `explain=1`, which takes longer and contains more.
 *
 * @param follow The store whose changes mean that it has to be requested again; null for none.
 */
export function useExplained<T>(
  panel: string,
  path: string | null,
  query: Query,
  follow: Store<number> | null = null,
): Loaded<T> {
  const full = useQuery<T>(`${panel}-explained`, path, { ...query, explain: 1 }, follow);
  const waiting = full.data === null || full.stale;
  const quick = useQuery<T>(panel, waiting && !savedPage ? path : null, query);
  if (!waiting || quick.data === null) return full;
  return {
    ...full,
    data: quick.data,
    provisional: full.loading && !quick.stale,
    problem: full.problem,
    stale: quick.stale,
    receivedAt: quick.receivedAt,
  };
}

function problemOf(error: unknown): Problem {
  if (error instanceof RequestError) return error.problem;
  return {
    title: "The page could not read the response.",
    status: 0,
    hint: String(error),
    reason: "internal",
  };
}

const CANCELLED: Problem = { title: "The query was cancelled.", status: 1, hint: null, reason: "internal" };
