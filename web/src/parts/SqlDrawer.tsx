/** A query that can be edited, and its rows. */

import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import type { SqlResult } from "../api";
import { copy } from "../clipboard";
import { quoted, withRecords } from "../command";
import { count, number, plural, value } from "../format";
import { useQuery } from "../query";
import { changed, go, Link, useParameters, viewAddress } from "../router";
import { savedPage } from "../saved";
import { Empty, Panel } from "./Panel";

export function SqlDrawer({ sql }: { sql: string }): JSX.Element {
  const state = useParameters();
  const running = state.query ?? "";
  const [text, setText] = useState(running || sql);
  const [edited, setEdited] = useState(running !== "");
  const query = useQuery<SqlResult>("sql", running ? "api/sql" : null, { query: running, limit: 200 });
  // Until it is edited, the text follows the panels.
  useEffect(() => {
    if (!edited) setText(sql);
  }, [sql, edited]);
  const run = () => go(changed({ query: text.trim() }));
  return (
    <details class="panel drawer" open={running !== ""}>
      <summary>SQL</summary>
      <div class="body stack">
        <label class="unseen" for="sql-text">
          SQL query over runs, stages and events
        </label>
        <textarea
          id="sql-text"
          class="mono"
          rows={Math.min(Math.max(text.split("\n").length, 4), 16)}
          spellcheck={false}
          value={text}
          readOnly={Boolean(savedPage)}
          onInput={(event) => {
            setEdited(true);
            setText(event.currentTarget.value);
          }}
          onKeyDown={(event) => {
            if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
            event.preventDefault();
            run();
          }}
        />
        <div class="row">
          <button
            type="button"
            class="primary"
            disabled={Boolean(savedPage) || !text.trim()}
            onClick={run}
            title="Ctrl+Enter"
          >
            Run
          </button>
          <button type="button" onClick={() => void copy(text, "the query")}>
            Copy
          </button>
          <button
            type="button"
            onClick={() => void copy(withRecords(`stageflow query ${quoted(text)}`), "the command")}
          >
            Copy as CLI command
          </button>
          {edited && (
            <button
              type="button"
              onClick={() => {
                setEdited(false);
                go(changed({ query: "" }));
              }}
            >
              Reset
            </button>
          )}
          <span class="muted small">The views are runs, stages and events. Queries are read-only.</span>
        </div>
        {running && (
          <Panel
            flush
            title="Result"
            query={query}
            height={200}
            footer={query.data && <Summary result={query.data} />}
          >
            {(result) =>
              result.rows.length ? (
                <ResultTable result={result} />
              ) : (
                <Empty>The query returned no rows.</Empty>
              )
            }
          </Panel>
        )}
      </div>
    </details>
  );
}

function Summary({ result }: { result: SqlResult }): JSX.Element {
  return (
    <span>
      {result.more ? `The first ${count(result.rows.length)} rows` : plural(result.rows.length, "row")},{" "}
      {number(result.ms)} ms
    </span>
  );
}

function ResultTable({ result }: { result: SqlResult }): JSX.Element {
  return (
    <div class="table-scroll" tabIndex={0} role="region" aria-label="Rows of the query">
      <table class="rows result">
        <thead>
          <tr>
            {result.columns.map((column, index) => (
              <th key={index} scope="col" class={isNumber(result, index) ? "number" : ""}>
                {column}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {result.rows.map((row, at) => (
            <tr key={at}>
              {row.map((cell, index) => (
                <td key={index} class={typeof cell === "number" ? "number" : ""}>
                  {["pipeline_run_id", "run_id"].includes(result.columns[index] ?? "") &&
                  typeof cell === "string" ? (
                    <Link to={viewAddress("run", { id: cell })}>{cell}</Link>
                  ) : (
                    <bdi class="clip cell">{value(cell)}</bdi>
                  )}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function isNumber(result: SqlResult, index: number): boolean {
  return result.rows.some((row) => typeof row[index] === "number");
}
