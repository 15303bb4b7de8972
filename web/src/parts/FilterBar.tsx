/** The filter bar: an SQL predicate whose terms are chips, with completion of fields, operators and values. */

import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import type { Completion, Completions, Problem } from "../api";
import { rejectedFilter, request, RequestError } from "../client";
import { count, withTimes } from "../format";
import { Icon } from "../icons";
import { Middle } from "./Middle";
import { and, completeTerm, identifier, joinTerms, label, negate, splitTerms } from "../predicate";
import { useQuery } from "../query";
import { changed, go, parameters, useParameters } from "../router";
import { savedPage } from "../saved";
import { useStore } from "../store";

/** A suggestion; a guess is added only if a person chooses it. */
type Suggestion = { text: string; shown: string; hint: string; final: boolean; guess?: boolean };

/** A term that the server rejected. */
type Rejected = { term: string; problem: Problem };

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
  const [message, setMessage] = useState("");
  const [rejected, setRejected] = useState<Rejected | null>(null);
  const isRejected = useStore(rejectedFilter) === state.where && Boolean(state.where);
  const input = useRef<HTMLInputElement>(null);
  const box = useRef<HTMLDivElement>(null);
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

  // A word that is not a field may be a value.
  const isWord = open && operator === "" && isUnknown(text.trim(), known);
  const fieldsOf = useQuery<Completions>("filter-fields-of-value", isWord ? "api/complete" : null, {
    over: over === "runs" ? "" : over,
    value: text.trim(),
  });
  const withValue = isWord && !fieldsOf.stale ? (fieldsOf.data?.suggestions ?? []) : [];

  const suggestions = open
    ? suggest(field, operator, prefix, known, values.data?.suggestions ?? [], terms, withValue)
    : [];

  // In a narrow window, the chips are on one line that scrolls: its end, with the text field, is visible.
  useEffect(() => {
    if (box.current) box.current.scrollLeft = box.current.scrollWidth;
  }, [state.where]);
  useEffect(() => {
    setActive(-1);
    setMessage("");
  }, [text]);
  // The filter of the address may be invalid, as in a link that somebody wrote.
  useEffect(() => {
    let isCurrent = true;
    setRejected(null);
    const find = async () => {
      for (const term of terms) {
        const problem = await problemOf(term, over);
        if (!isCurrent) return;
        if (problem) {
          setRejected({ term, problem });
          return;
        }
      }
    };
    if (isRejected && !savedPage) void find();
    return () => {
      isCurrent = false;
    };
  }, [isRejected, state.where, over]);
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

  // The beginning of a field's name, or a comparison without a value, is not a predicate yet.
  const incomplete = (typed: string) => {
    const { field: name, operator: sign, prefix: rest } = parts(typed);
    if (sign) return rest === "";
    return typed.trim() === name && name !== "" && type(plain(name)) !== "boolean";
  };

  const add = (typed: string) => {
    if (!typed.trim()) return;
    if (incomplete(typed)) {
      setMessage(expected(typed));
      setOpen(true);
      return;
    }
    setText("");
    setOpen(false);
    void addTerm(completeTerm(typed, type));
  };

  // The page keeps its filter, and with it its content, while a term is not valid.
  const addTerm = async (term: string) => {
    const problem = await problemOf(term, over);
    setRejected(problem ? { term, problem } : null);
    if (!problem) go(changed({ where: and(parameters.value.where, term), before: "" }));
  };

  const replaceRejected = (term: string) => {
    if (rejected && terms.includes(rejected.term))
      apply(terms.map((each) => (each === rejected.term ? term : each)));
    else void addTerm(term);
  };

  const removeRejected = () => {
    if (rejected) apply(terms.filter((each) => each !== rejected.term));
    setRejected(null);
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
      const first = suggestions[0]?.guess ? undefined : suggestions[0];
      const chosen = suggestions[active] ?? (incomplete(text) ? first : undefined);
      if (chosen) choose(chosen);
      else add(text);
    } else if (
      event.key === "Tab" &&
      suggestions.length &&
      text &&
      !event.shiftKey &&
      (active >= 0 || !suggestions[0]?.guess)
    ) {
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
        ref={box}
        class="filter-box"
        onClick={(event) => event.target === event.currentTarget && input.current?.focus()}
      >
        {terms.map((term, index) => (
          <Chip
            key={term}
            term={term}
            isBad={rejected?.term === term}
            edit={() => edit(index)}
            negate={() => apply(terms.map((each, at) => (at === index ? negate(each) : each)))}
            remove={() => apply(terms.filter((_, each) => each !== index))}
          />
        ))}
        {rejected && !terms.includes(rejected.term) && (
          <Chip
            isBad
            term={rejected.term}
            edit={() => {
              setText(rejected.term);
              setRejected(null);
              input.current?.focus();
            }}
            remove={removeRejected}
          />
        )}
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
      {rejected && (
        <Rejection
          rejected={rejected}
          isApplied={terms.includes(rejected.term)}
          replace={replaceRejected}
          remove={removeRejected}
        />
      )}
      <div
        class="popover suggestions"
        // Without this, Tab would move to the list, because it scrolls.
        tabIndex={-1}
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
        {message && (
          <div class="hint is-fail" role="alert">
            {message}
          </div>
        )}
        <div class="hint">
          {!open || !text || incomplete(text)
            ? "Any SQL predicate works, as in --where on the command line."
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
  withValue: Completion[],
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
    const operators = OPERATORS.filter(([sign]) => (exact.type === "text" ? !/[<>]/.test(sign) : sign !== "~"));
    return operators.map(([sign, word]) => ({
      text: `${asTyped(exact.text)}${sign}`,
      shown: `${exact.text} ${sign}`,
      hint: word,
      final: false,
    }));
  }
  const ranked = known
    .filter((each) => plain(each.text).toLowerCase().includes(wanted) || isSynonym(each, wanted))
    .sort((one, other) => rank(one, wanted) - rank(other, wanted))
    .slice(0, 40 - words.length);
  if (isUnknown(field, known)) return guesses(field, known, withValue);
  return [
    ...words,
    ...ranked.map((each) => ({
      text: asTyped(each.text),
      shown: plain(each.text),
      hint: each.kind === "stage field" ? `${each.type ?? ""} of a stage` : (each.type ?? ""),
      final: each.type === "boolean" && each.text !== "failed",
    })),
  ].filter((each, index, all) => all.findIndex((other) => other.text === each.text) === index);
}

/** Whether a text is a word that is not a part of the name of a field. */
function isUnknown(word: string, known: Completion[]): boolean {
  const wanted = word.toLowerCase();
  return (
    known.length > 0 &&
    /^[\w.@:-]+$/.test(word) &&
    !["failed", "not failed"].some((each) => each.includes(wanted)) &&
    !known.some((each) => plain(each.text).toLowerCase().includes(wanted) || isSynonym(each, wanted))
  );
}

/** What a word that is not a field may be: a value of the fields that have it, then of common fields. */
function guesses(word: string, known: Completion[], withValue: Completion[]): Suggestion[] {
  const guess = (name: string, sign: string, hint: string, value = word) => {
    const shown = `${name}${sign}${value}`;
    return { text: `${asTyped(name)}${sign}${value}`, shown, hint, final: true, guess: true };
  };
  const found = withValue.map((each) => guess(each.text, "=", count(each.count), each.value ?? word));
  const others = [...COMMON, "error"]
    .filter((name) => known.some((each) => plain(each.text) === name && each.type === "text"))
    .filter((name) => !withValue.some((each) => each.text === name))
    .map((name) => (name === "error" ? guess(name, "~", "contains") : guess(name, "=", "is")));
  return [...found, ...others];
}

/** What is missing in a text that is not a predicate yet. */
function expected(typed: string): string {
  const { field, operator } = parts(typed);
  if (operator) return `A value is missing after ${field}${operator}`;
  return `“${typed.trim()}” is not a condition. Compare a field with a value, such as org_id=globex.`;
}

/** Return why the server rejects a term; null for a valid one. */
async function problemOf(term: string, over: "runs" | "stages"): Promise<Problem | null> {
  try {
    if (over === "runs") await request("filter-check", "api/runs", { where: term, limit: 1 });
    else await request("filter-check", "api/heatmap", { over, where: term, columns: 1, rows: 1 });
  } catch (error) {
    if (error instanceof RequestError && error.problem.reason === "invalid") return error.problem;
  }
  return null;
}

type RejectionProperties = {
  rejected: Rejected;
  /** Whether the filter contains the term, so that the views report the problem too. */
  isApplied: boolean;
  replace: (term: string) => void;
  remove: () => void;
};

/** Why a term was rejected, and what may have been meant. */
function Rejection({ rejected: { term, problem }, isApplied, replace, remove }: RejectionProperties): JSX.Element {
  const [, text = problem.title, , meant] =
    /^(.*?)( in (?:'.*'|".*"))?; did you mean (.+)\?$/s.exec(problem.title) ?? [];
  const name = /^unknown field '(.+?)'/.exec(problem.title)?.[1];
  const field = meant?.replace(/^'(.*)'$/, "$1");
  return (
    <div class="rejection" role="alert">
      <span>
        {isApplied ? "" : "This filter is not applied: "}
        {text.replace(/ in ('.*'|".*")$/s, "")}.
      </span>
      {name && field && /^("[^"]+"|[\w.]+)$/.test(field) && (
        <button
          type="button"
          onClick={() => replace(term.replaceAll(`"${name}"`, name).replaceAll(name, field))}
        >
          Use {plain(field)}
        </button>
      )}
      <button type="button" onClick={remove}>
        Remove
      </button>
    </div>
  );
}

/** Whether a field has another name that starts with the text, as `org_id` has the name `customer`. */
function isSynonym(field: Completion, wanted: string): boolean {
  return wanted.length > 2 && field.synonyms.some((each) => each.startsWith(wanted));
}

function rank(field: Completion, wanted: string): number {
  const name = plain(field.text).toLowerCase();
  const last = field.kind === "stage field" ? 10 : 0;
  if (wanted === "") return COMMON.includes(name) ? COMMON.indexOf(name) : 100 + last;
  if (name.startsWith(wanted)) return last;
  if (name.endsWith(`.${wanted}`) || name.endsWith(`_${wanted}`)) return last + 1;
  if (isSynonym(field, wanted)) return 2;
  return last + (name.includes(`.${wanted}`) ? 3 : 4);
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

type ChipProperties = {
  term: string;
  /** Whether the server rejected the term. */
  isBad?: boolean;
  edit: () => void;
  negate?: () => void;
  remove: () => void;
};

function Chip({ term, isBad = false, edit, negate: not, remove }: ChipProperties): JSX.Element {
  const text = withTimes(label(term));
  if (savedPage) {
    return (
      <span class="chip">
        <span class="what">{text}</span>
      </span>
    );
  }
  return (
    <span class={`chip ${isBad ? "bad" : ""}`} role="group" aria-label={isBad ? `${text}, invalid` : text}>
      <button type="button" class="what" title={`${term} — click to edit`} onClick={edit}>
        <Middle text={text} title={false} />
      </button>
      {not && (
        <button type="button" aria-label={`Negate ${text}`} title="Negate" onClick={not}>
          ≠
        </button>
      )}
      <button type="button" aria-label={`Remove ${text}`} title="Remove" onClick={remove}>
        <Icon name="close" />
      </button>
    </span>
  );
}
