/** The filter bar: an SQL predicate whose terms are chips, with completion of fields, operators and values. */

import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import type { Completion, Completions } from "../api";
import { count, withTimes } from "../format";
import { Icon } from "../icons";
import { and, completeTerm, identifier, joinTerms, label, negate, splitTerms } from "../predicate";
import { useQuery } from "../query";
import { changed, go, useParameters } from "../router";
import { savedPage } from "../saved";

type Suggestion = { text: string; shown: string; hint: string; final: boolean };

const OPERATORS: [string, string][] = [
  ["=", "is"],
  ["!=", "is not"],
  ["~", "contains"],
  [">", "greater than"],
  ["<", "less than"],
];

/** Split what is being typed into a field, an operator and the beginning of a value. */
function parts(text: string): { field: string; operator: string; prefix: string } {
  const match = /^\s*("(?:[^"]|"")+"|[^\s=<>!~'"]*)\s*(!=|<>|>=|<=|=|>|<|~)?\s*(.*)$/s.exec(text);
  return {
    field: match?.[1] ?? "",
    operator: match?.[2] ?? "",
    prefix: (match?.[3] ?? "").replace(/^'/, ""),
  };
}

function plain(field: string): string {
  return field.startsWith('"') ? field.slice(1, -1).replaceAll('""', '"') : field;
}

export function FilterBar(): JSX.Element {
  const state = useParameters();
  const over = state.view === "explore" && state.over === "stages" ? "stages" : "runs";
  const terms = splitTerms(state.where ?? "");
  const [text, setText] = useState("");
  const [open, setOpen] = useState(false);
  const [active, setActive] = useState(-1);
  const input = useRef<HTMLInputElement>(null);
  const { field, operator, prefix } = parts(text);

  const fields = useQuery<Completions>("filter-fields", savedPage ? null : "api/complete", {
    over: over === "runs" ? "" : over,
  });
  const known = fields.data?.suggestions ?? [];
  const asksValues =
    open && operator !== "" && operator !== "~" && known.some((each) => plain(each.text) === plain(field));
  const values = useQuery<Completions>("filter-values", asksValues ? "api/complete" : null, {
    over: over === "runs" ? "" : over,
    field: plain(field),
    prefix,
    ...(state.since ? { since: state.since } : {}),
    ...(state.until ? { until: state.until } : {}),
  });

  const suggestions = open
    ? suggest(field, operator, prefix, known, values.data?.suggestions ?? [], terms)
    : [];

  useEffect(() => setActive(-1), [text]);
  useEffect(() => {
    const focus = (event: KeyboardEvent) => {
      const target = event.target as HTMLElement;
      if (event.key !== "/" || event.ctrlKey || event.metaKey || target.closest("input, textarea, select"))
        return;
      event.preventDefault();
      input.current?.focus();
    };
    document.addEventListener("keydown", focus);
    return () => document.removeEventListener("keydown", focus);
  }, []);

  const apply = (next: string[]) => go(changed({ where: joinTerms(next), before: "" }));
  const type = (name: string) => known.find((each) => plain(each.text) === name)?.type ?? null;

  // The beginning of a field's name, or a comparison without a value, is no predicate yet.
  const incomplete = (typed: string) => {
    const { field: name, operator: sign, prefix: rest } = parts(typed);
    if (sign) return rest === "";
    return typed.trim() === name && name !== "" && type(plain(name)) !== "boolean";
  };

  const add = (typed: string) => {
    if (!typed.trim() || incomplete(typed)) return;
    setText("");
    setOpen(false);
    go(changed({ where: and(state.where, completeTerm(typed, type)), before: "" }));
  };

  const choose = (suggestion: Suggestion) => {
    if (suggestion.final) add(suggestion.text);
    else {
      setText(suggestion.text);
      setOpen(true);
    }
    input.current?.focus();
  };

  const press = (event: KeyboardEvent) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step !== undefined) {
      event.preventDefault();
      setOpen(true);
      if (suggestions.length)
        setActive(
          (active + step + suggestions.length + (active < 0 && step < 0 ? 1 : 0)) % suggestions.length,
        );
    } else if (event.key === "Enter") {
      event.preventDefault();
      const chosen = suggestions[active] ?? (incomplete(text) ? suggestions[0] : undefined);
      if (chosen) choose(chosen);
      else add(text);
    } else if (event.key === "Tab" && suggestions.length && text && !event.shiftKey) {
      event.preventDefault();
      choose(suggestions[Math.max(active, 0)] as Suggestion);
    } else if (event.key === "Escape") {
      setOpen(false);
      setActive(-1);
    } else if (event.key === "Backspace" && text === "" && terms.length) {
      event.preventDefault();
      setText(terms[terms.length - 1] ?? "");
      apply(terms.slice(0, -1));
    }
  };

  const edit = (index: number) => {
    setText(terms[index] ?? "");
    apply(terms.filter((_, each) => each !== index));
    input.current?.focus();
  };

  if (savedPage && terms.length === 0) return <span class="filter" />;
  return (
    <div class="filter" role="search">
      <div
        class="filter-box"
        onClick={(event) => event.target === event.currentTarget && input.current?.focus()}
      >
        {terms.map((term, index) => (
          <Chip
            key={term}
            term={term}
            edit={() => edit(index)}
            negate={() => apply(terms.map((each, at) => (at === index ? negate(each) : each)))}
            remove={() => apply(terms.filter((_, each) => each !== index))}
          />
        ))}
        {!savedPage && (
          <input
            ref={input}
            value={text}
            role="combobox"
            aria-label={`Filter ${over}`}
            aria-expanded={suggestions.length > 0}
            aria-controls="filter-suggestions"
            aria-autocomplete="list"
            aria-activedescendant={active >= 0 ? `filter-suggestion-${active}` : undefined}
            autocomplete="off"
            spellcheck={false}
            placeholder={terms.length ? "" : `Filter ${over}: pipeline_name=ask, failed, duration_ms>2000`}
            onInput={(event) => {
              setText(event.currentTarget.value);
              setOpen(true);
            }}
            onFocus={() => setOpen(true)}
            onBlur={() => setOpen(false)}
            onKeyDown={press}
          />
        )}
      </div>
      <div
        class="popover suggestions"
        hidden={!open || (suggestions.length === 0 && text === "")}
        // Keep the focus in the text field.
        onPointerDown={(event) => event.preventDefault()}
      >
        <ul id="filter-suggestions" role="listbox" aria-label="Suggestions">
          {suggestions.map((suggestion, index) => (
            <li
              key={suggestion.text}
              id={`filter-suggestion-${index}`}
              role="option"
              aria-selected={index === active}
              onClick={() => choose(suggestion)}
            >
              <span class="mono">{suggestion.shown}</span>
              <span class="muted small nowrap">{suggestion.hint}</span>
            </li>
          ))}
        </ul>
        <div class="hint">
          {!open || !text || incomplete(text)
            ? "Any SQL predicate works, also with --where on the command line."
            : `Enter adds: ${completeTerm(text, type)}`}
        </div>
      </div>
    </div>
  );
}

function suggest(
  field: string,
  operator: string,
  prefix: string,
  known: Completion[],
  values: Completion[],
  terms: string[],
): Suggestion[] {
  if (operator) {
    const start = `${field}${operator}`;
    return values
      .filter((each) => each.text.toLowerCase().includes(prefix.toLowerCase()))
      .slice(0, 20)
      .map((each) => ({
        text: `${start}${each.text}`,
        shown: each.text,
        hint: each.count === null ? "" : count(each.count),
        final: true,
      }));
  }
  const wanted = plain(field).toLowerCase();
  const exact = known.find((each) => plain(each.text).toLowerCase() === wanted);
  const words = ["failed", "NOT failed"]
    .filter((word) => (wanted !== "" ? word.toLowerCase().includes(wanted) : !terms.includes(word)))
    .map((word) => ({
      text: word,
      shown: word,
      hint: word === "failed" ? "counts as a failure" : "",
      final: true,
    }));
  if (exact && exact.type !== "boolean") {
    const operators = OPERATORS.filter(([sign]) => exact.type === "text" || sign !== "~");
    return operators.map(([sign, word]) => ({
      text: `${asTyped(exact.text)}${sign}`,
      shown: `${exact.text} ${sign}`,
      hint: word,
      final: false,
    }));
  }
  const ranked = known
    .filter((each) => plain(each.text).toLowerCase().includes(wanted))
    .sort((one, other) => rank(one.text, wanted) - rank(other.text, wanted))
    .slice(0, 40 - words.length);
  return [
    ...words,
    ...ranked.map((each) => ({
      text: asTyped(each.text),
      shown: plain(each.text),
      hint: each.type ?? "",
      final: each.type === "boolean" && each.text !== "failed",
    })),
  ].filter((each, index, all) => all.findIndex((other) => other.text === each.text) === index);
}

function rank(field: string, wanted: string): number {
  const name = plain(field).toLowerCase();
  if (wanted === "") return COMMON.includes(name) ? COMMON.indexOf(name) : 100;
  return name.startsWith(wanted) ? 0 : name.includes(`.${wanted}`) ? 1 : 2;
}

const COMMON = [
  "pipeline_name",
  "outcome",
  "duration_ms",
  "org_id",
  "user_id",
  "error_type",
  "service_version",
  "status",
];

function asTyped(field: string): string {
  return field.startsWith('"') ? field : identifier(field);
}

type ChipProperties = { term: string; edit: () => void; negate: () => void; remove: () => void };

function Chip({ term, edit, negate: not, remove }: ChipProperties): JSX.Element {
  const text = withTimes(label(term));
  if (savedPage) {
    return (
      <span class="chip">
        <span class="what">{text}</span>
      </span>
    );
  }
  return (
    <span class="chip" role="group" aria-label={text}>
      <button type="button" class="what" title={`${term} — click to edit`} onClick={edit}>
        {text}
      </button>
      <button type="button" aria-label={`Negate ${text}`} title="Negate" onClick={not}>
        ≠
      </button>
      <button type="button" aria-label={`Remove ${text}`} title="Remove" onClick={remove}>
        <Icon name="close" />
      </button>
    </span>
  );
}
