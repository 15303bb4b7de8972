/** SQL predicates: the text of the filter bar, and its chips. */

import { measured } from "./format";

type Span = { start: number; end: number; word: string };

/** Return the keywords and other words outside quotes and parentheses. */
function words(text: string): Span[] {
  const found: Span[] = [];
  let depth = 0;
  let position = 0;
  while (position < text.length) {
    const character = text[position] ?? "";
    if (character === "'" || character === '"') {
      position += 1;
      while (position < text.length && text[position] !== character) position += 1;
      position += 1;
    } else if ("([{".includes(character)) {
      depth += 1;
      position += 1;
    } else if (")]}".includes(character)) {
      depth -= 1;
      position += 1;
    } else if (/[a-z_]/i.test(character)) {
      const word = /^[\w.]+/.exec(text.slice(position))?.[0] ?? character;
      if (depth === 0) found.push({ start: position, end: position + word.length, word: word.toUpperCase() });
      position += word.length;
    } else position += 1;
  }
  return found;
}

/** Split a predicate at each AND outside quotes and parentheses; a predicate with an OR there is one term. */
export function splitTerms(where: string): string[] {
  const text = where.trim();
  if (!text) return [];
  const all = words(text);
  if (all.some(({ word }) => word === "OR")) return [text];
  const terms: string[] = [];
  let start = 0;
  let between = false;
  let cases = 0;
  for (const { start: at, end, word } of all) {
    if (word === "CASE") cases += 1;
    else if (word === "END") cases -= 1;
    else if (word === "BETWEEN") between = true;
    else if (word === "AND" && between) between = false;
    else if (word === "AND" && cases === 0) {
      terms.push(text.slice(start, at).trim());
      start = end;
    }
  }
  terms.push(text.slice(start).trim());
  return terms.filter((term) => term !== "").map(unwrap);
}

/** Join terms with AND. */
export function joinTerms(terms: string[]): string {
  const one = terms.length === 1;
  return terms
    .map((term) => (!one && words(term).some(({ word }) => word === "OR") ? `(${term})` : term))
    .join(" AND ");
}

/** Add a predicate to another one, unless it is already a part of it. */
export function and(where: string | undefined, term: string): string {
  const terms = splitTerms(where ?? "");
  for (const each of splitTerms(term)) if (!terms.includes(each)) terms.push(each);
  return joinTerms(terms);
}

function closing(text: string): number {
  let depth = 0;
  let quote = "";
  for (let position = 0; position < text.length; position += 1) {
    const character = text[position] ?? "";
    if (quote) {
      if (character === quote) quote = "";
    } else if (character === "'" || character === '"') quote = character;
    else if (character === "(") depth += 1;
    else if (character === ")") {
      depth -= 1;
      if (depth === 0) return position;
    }
  }
  return -1;
}

/** Remove the parentheses around a whole predicate. */
export function unwrap(text: string): string {
  let inner = text.trim();
  while (inner.startsWith("(") && closing(inner) === inner.length - 1) inner = inner.slice(1, -1).trim();
  return inner;
}

const NAME = String.raw`"(?:[^"]|"")+"|[A-Za-z_][\w.]*`;
const VALUE = String.raw`(?:TIMESTAMPTZ\s+)?'(?:[^']|'')*'|-?\d[\d.eE+-]*|true|false`;
const COMPARISON = new RegExp(
  `^(${NAME})\\s*(=|<>|!=|>=|<=|>|<|IS NOT DISTINCT FROM|IS DISTINCT FROM)\\s*(${VALUE})$`,
  "i",
);
const LITERAL = new RegExp(VALUE, "gi");
const IN = new RegExp(`^(${NAME})\\s+IN\\s+\\(((?:${VALUE})(?:\\s*,\\s*(?:${VALUE}))*)\\)$`, "i");
const MISSING = new RegExp(`^(${NAME})\\s+IS\\s+(NOT\\s+)?NULL$`, "i");

/** A condition on how runs ended. */
const RESULT =
  /^(?:NOT\s+)?\(*"?(?:failed|outcome|status|error|error_type|error_fingerprint|first_failed_stage)"?(?![\w.])/i;

/** A condition on how stages of runs ended. */
const RESULT_OF_STAGE =
  /^pipeline_run_id in \(select pipeline_run_id from stages where .*\b(?:failed|status = 'FAIL'|error\w*)/is;

/**
 * Split a predicate into the conditions on how runs ended, and the others.
 *
 * The former select runs to compare with the rest: as a filter, they would leave nothing to compare with.
 */
export function splitResult(where: string | undefined): { select: string; where: string } {
  const terms = splitTerms(where ?? "");
  const isResult = (term: string) => RESULT.test(term) || RESULT_OF_STAGE.test(term);
  return {
    select: joinTerms(terms.filter(isResult)),
    where: joinTerms(terms.filter((term) => !isResult(term))),
  };
}

/**
 * Return the predicate that matches all other rows, including those for which the term is NULL.
 *
 * A boolean field by itself becomes `NOT failed`, as on the command line.
 */
export function negate(term: string): string {
  const text = unwrap(term);
  const missing = MISSING.exec(text);
  if (missing) return `${missing[1]} IS ${missing[2] ? "" : "NOT "}NULL`;
  const comparison = COMPARISON.exec(text);
  if (comparison) {
    const [, name, operator = "", value] = comparison;
    if (operator === "=" || /^IS NOT/i.test(operator)) return `${name} IS DISTINCT FROM ${value}`;
    if (/^IS D/i.test(operator) || operator === "<>" || operator === "!=") return `${name} = ${value}`;
  }
  const other = /^(\(.*\)) IS NOT TRUE$/s.exec(text)?.[1];
  if (other && closing(other) === other.length - 1) return unwrap(other);
  const not = /^NOT\s+(.*)$/is.exec(text);
  if (not?.[1]) {
    const inner = not[1].trim();
    if (/^[\w.]+$/.test(inner) || (inner.startsWith("(") && closing(inner) === inner.length - 1))
      return unwrap(inner);
  }
  if (/^[A-Za-z_][\w.]*$/.test(text)) return `NOT ${text}`;
  return `(${text}) IS NOT TRUE`;
}

/** Return a short text for a term: `org_id=globex` for `org_id = 'globex'`. */
export function label(term: string): string {
  // The limits of all pipelines are too long to read.
  const slowest = /^duration_ms > CASE (?:CAST\()?"?([^"\s]+?)"?(?: AS VARCHAR\))? WHEN .* END$/s.exec(term.trim());
  if (slowest) return `slowest of each ${slowest[1]?.replace(/_name$/, "")}`;
  const text = unwrap(term);
  if (/^error_fingerprint = '(?:[^']|'')*'$/i.test(text)) return SAME_ERROR;
  const missing = MISSING.exec(text);
  if (missing) return `${bare(missing[1] ?? "")} ${missing[2] ? "exists" : "is missing"}`;
  const comparison = COMPARISON.exec(text);
  if (comparison) {
    const [, name = "", operator = "", value = ""] = comparison;
    const sign = { "=": "=", "<>": "≠", "!=": "≠", ">=": "≥", "<=": "≤" }[operator];
    const shown = sign ?? (/^IS NOT/i.test(operator) ? "=" : /^IS D/i.test(operator) ? "≠" : operator);
    return `${bare(name)}${shown}${rounded(bare(name), value)}`;
  }
  const not = /^NOT\s+([\w.]+)$/i.exec(text);
  if (not) return `not ${not[1]}`;
  const other = /^\((.*)\) IS NOT TRUE$/is.exec(text)?.[1];
  if (other) return `not (${label(other)})`;
  const values = IN.exec(text);
  if (values) return `${bare(values[1] ?? "")}=${(values[2] ?? "").match(LITERAL)?.map(bare).sort().join(" or ")}`;
  const stages = /^pipeline_run_id in \(select pipeline_run_id from stages where (.*)\)$/is.exec(text);
  if (stages?.[1]) return stageLabel(splitTerms(stages[1]));
  return text;
}

/** Return a value as text; a number with many digits, such as an edge of a heatmap, with few and its unit. */
function rounded(name: string, typed: string): string {
  const isLong = /^-?\d/.test(typed) && typed.replace(/\D/g, "").length > 6 && !Number.isInteger(Number(typed));
  return isLong ? measured(name, Number(typed)) : bare(typed);
}

/** The words for a fingerprint, which means nothing to a person. */
export const SAME_ERROR = "the same error";

/** Return a short text for a condition on a stage of a run: `llm/status=FAIL`, "llm failed with ValueError (ask)". */
function stageLabel(terms: string[]): string {
  const valueOf = (field: string) => {
    const found = terms.map((term) => COMPARISON.exec(term)).find((each) => each?.[1] === field && each[2] === "=");
    return found?.[3] ? bare(found[3]) : undefined;
  };
  const stage = valueOf("stage_name") ?? "a stage";
  const error = valueOf("error_fingerprint") !== undefined ? SAME_ERROR : valueOf("error_type");
  if (valueOf("status") === "FAIL" && error && terms.length <= 4) {
    const pipeline = valueOf("topology");
    return `${stage} failed with ${error}${pipeline ? ` (${pipeline})` : ""}`;
  }
  const others = terms.filter((term) => !/^stage_name = '|^status <> 'RETRY'$/.test(term)).map(label);
  return others.length ? others.map((each) => `${stage}/${each}`).join(", ") : `with ${stage}`;
}

function bare(typed: string): string {
  const text = typed.replace(/^TIMESTAMPTZ\s+/i, "");
  const quote = text[0];
  if (quote !== "'" && quote !== '"') return text;
  return text.slice(1, -1).replaceAll(quote + quote, quote);
}

/** Return a text as an SQL literal. */
export function literal(text: string): string {
  return `'${text.replaceAll("'", "''")}'`;
}

/** Return the name of a field as an SQL identifier. */
export function identifier(name: string): string {
  return /^[a-z_][a-z0-9_]*$/.test(name) ? name : `"${name.replaceAll('"', '""')}"`;
}

const SHORT = /^("(?:[^"]|"")+"|[^\s=<>!~'"()]+)\s*(!=|<>|>=|<=|=|>|<|~)\s*(.*)$/s;

/**
 * Complete a term as a person types it: `org_id=globex` becomes `org_id = 'globex'`.
 *
 * @param type The type of a field, as the server's completions name it.
 */
export function completeTerm(typed: string, type: (field: string) => string | null): string {
  const text = typed.trim();
  const negated = /^[!-]\s*([A-Za-z_]\w*)$/.exec(text);
  if (negated) return `NOT ${negated[1]}`;
  const missing = /^(\S+) (is missing|exists)$/i.exec(text);
  if (missing?.[1]) return `${asName(missing[1])} IS ${/^e/i.test(missing[2] ?? "") ? "NOT " : ""}NULL`;
  const short = SHORT.exec(text);
  if (!short) return text;
  const [, name = "", operator = "", rest = ""] = short;
  const value = rest.trim();
  // Text that is more than a value, such as an expression or AND with another term, is SQL already.
  if (value === "" || /^['"(]/.test(value) || /\s(and|or)\s/i.test(value)) return text;
  const column = asName(name);
  if (operator === "~") return `${column} ILIKE ${literal(`%${value}%`)}`;
  const kind = type(bare(name));
  const asIs = kind !== "text" && /^(-?\d[\d.]*(e[+-]?\d+)?|true|false)$/i.test(value);
  // A number or a time is compared with an expression, such as another field.
  if (!asIs && kind === "number") return text;
  const end = asIs ? value : literal(value);
  return operator === "!=" || operator === "<>"
    ? `${column} IS DISTINCT FROM ${end}`
    : `${column} ${operator} ${end}`;
}

function asName(name: string): string {
  return name.startsWith('"') ? name : identifier(name);
}

/** A rectangle of a heatmap: a half-open interval of time, and an interval of the measure. */
export type Box = { from: string; to: string; low: number; high: number; closed: boolean };

/** Return the predicate of the rows in a box. */
export function boxPredicate(box: Box, measure: string): string {
  const operator = box.closed ? "<=" : "<";
  return (
    `started_at >= '${box.from}' AND started_at < '${box.to}'` +
    ` AND ${measure} >= ${box.low} AND ${measure} ${operator} ${box.high}`
  );
}

/** Return the box of a predicate of `boxPredicate`; null for any other predicate. */
export function parseBox(select: string, measure: string): Box | null {
  const match = /^started_at >= '([^']+)' AND started_at < '([^']+)' AND (.*)$/s.exec(select);
  if (!match) return null;
  const [, from = "", to = "", rest = ""] = match;
  const prefix = `${measure} >= `;
  if (!rest.startsWith(prefix)) return null;
  const middle = ` AND ${measure} <`;
  const at = rest.indexOf(middle, prefix.length);
  if (at < 0) return null;
  const low = Number(rest.slice(prefix.length, at));
  const end = rest.slice(at + middle.length);
  const closed = end.startsWith("=");
  const high = Number(closed ? end.slice(1) : end);
  return Number.isFinite(low) && Number.isFinite(high) ? { from, to, low, high, closed } : null;
}
