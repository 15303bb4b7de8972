/** The options of a list of fields: those of the rows, and those of the stages of a run. */

import type { JSX } from "preact";
import type { Completion } from "../api";

export function FieldOptions({ fields }: { fields: Completion[] }): JSX.Element {
  const groups = [
    ["Fields", fields.filter((each) => each.kind === "field")],
    ["Fields of stages", fields.filter((each) => each.kind === "stage field")],
  ] as const;
  return (
    <>
      {groups.map(
        ([title, each]) =>
          each.length > 0 && (
            <optgroup key={title} label={title}>
              {each.map(({ text }) => (
                <option key={text} value={text}>
                  {text}
                </option>
              ))}
            </optgroup>
          ),
      )}
    </>
  );
}
