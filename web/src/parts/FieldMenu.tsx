/** What can be done with a condition: only, exclude, group by. */

import type { ComponentChildren, JSX } from "preact";
import { copy } from "../clipboard";
import { and, negate } from "../predicate";
import { changed, go, parameters, viewAddress } from "../router";
import { savedPage } from "../saved";
import { type Item, Menu } from "./Menu";

type Properties = {
  /** The predicate of the rows with the condition. */
  where: string;
  /** The field to group by; null if the rows cannot be grouped by it. */
  field: string | null;
  label: ComponentChildren;
  name?: string;
  title?: string;
  class?: string;
  more?: Item[];
};

export function FieldMenu({
  where,
  field,
  label,
  name,
  title,
  class: kind = "text",
  more = [],
}: Properties): JSX.Element {
  if (savedPage) return <span title={title}>{label}</span>;
  const current = parameters.value.where;
  const items: Item[] = [
    { label: "Only these", run: () => go(changed({ where: and(current, where) })) },
    { label: "Exclude these", run: () => go(changed({ where: and(current, negate(where)) })) },
    ...(field ? [{ label: `Group by ${field}`, run: () => go(changed({ by: field })) }] : []),
    "line",
    ...(parameters.value.over === "stages"
      ? []
      : [{ label: "Show the runs", to: viewAddress("runs", { where: and(current, where) }) }]),
    { label: "Copy the condition", run: () => void copy(where, "the condition") },
    ...more,
  ];
  return (
    <Menu
      class={kind}
      label={label}
      items={items}
      {...(name ? { name } : {})}
      {...(title ? { title } : {})}
    />
  );
}
