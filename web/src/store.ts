/** A value that components can subscribe to. */

import { useEffect, useState } from "preact/hooks";

export class Store<T> {
  private listeners = new Set<(value: T) => void>();

  constructor(private current: T) {}

  get value(): T {
    return this.current;
  }

  set(value: T): void {
    if (Object.is(value, this.current)) return;
    this.current = value;
    for (const listener of [...this.listeners]) listener(value);
  }

  subscribe(listener: (value: T) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }
}

/** Return the value of a store, and render again when it changes. */
export function useStore<T>(store: Store<T>): T {
  const [, render] = useState(0);
  useEffect(() => {
    const seen = store.value;
    const update = () => render((count) => count + 1);
    const stop = store.subscribe(update);
    // The value may have changed between rendering and this effect.
    if (!Object.is(seen, store.value)) update();
    return stop;
  }, [store]);
  return store.value;
}
