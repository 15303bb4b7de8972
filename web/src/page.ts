/** What the share menu can copy of the view that is open. */

import { useEffect } from "preact/hooks";

export type Page = {
  title: string;
  /** Compact Markdown of what the view shows. */
  markdown?: () => string;
  /** The same question for the command line. */
  command?: string | string[];
  /** The query behind the view. */
  sql?: string;
};

let page: Page = { title: "stageflow" };

export function currentPage(): Page {
  return page;
}

/** Set the title of the window, and what the share menu copies. */
export function usePage(next: Page): void {
  page = next;
  useEffect(() => {
    document.title = next.title === "stageflow" ? "stageflow" : `${next.title} · stageflow`;
  }, [next.title]);
}
