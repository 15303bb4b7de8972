/** Icons, drawn for this project on a grid of 16 units. */

import type { JSX } from "preact";

const PATHS = {
  overview: "M2 13V9M6 13V4M10 13V7M14 13V2",
  explore: "M2 2h12v12H2zM6 6h6v5H6z",
  runs: "M2 4h9M4 8h9M6 12h8",
  errors: "M8 2l6.5 12h-13zM8 6.5v3.5M8 12v.2",
  stages: "M2 2.5h4v3H2zM2 10.5h4v3H2zM10 6.5h4v3h-4zM6 4l4 3.6M6 12l4-3.6",
  status: "M1.5 8H5l2-5 3 10 2-5h2.5",
  close: "M4 4l8 8M12 4l-8 8",
  menu: "M4 6.5l4 4 4-4",
  share: "M10.5 4.5L8 2 5.5 4.5M8 2v8M4 8H2.5v6h11V8H12",
  refresh: "M13 8a5 5 0 1 1-1.5-3.6M13 2v3.2H9.8",
  settings: "M2 4.5h6M12 4.5h2M2 11.5h2M8 11.5h6M10 2.5a2 2 0 1 0 0 4 2 2 0 0 0 0-4zM6 9.5a2 2 0 1 0 0 4 2 2 0 0 0 0-4z",
  copy: "M5 5V2h9v9h-3M2 5h9v9H2z",
  not: "M3 8h10",
  next: "M6 4l4 4-4 4",
  back: "M10 4L6 8l4 4",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name }: { name: IconName }): JSX.Element {
  return (
    <svg class="icon" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true" focusable="false">
      <path d={PATHS[name]} />
    </svg>
  );
}
