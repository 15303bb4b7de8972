// Generated from src/stageflow/ui/_api.py by `make api-types`. Do not edit.

/** An interval of a numeric field, and the number of rows in it. */
export type Bin = {
  low: number;
  high: number;
  where: string;
  selection: number;
  rest: number;
};

/** What the runs of the findings have in common, which takes longer: `GET /api/causes`. */
export type Causes = {
  snapshot: number;
  findings: Finding[];
  onsets: Mark[];
};

/** A cell of a heatmap that is not empty; a JSON array. */
export type Cell = [number, number, number, number, number];

/** Something that occurred for the first time shortly before the selection started. */
export type Change = {
  field: string;
  value: string;
  first_at: string;
  before_onset_s: number;
  selection: Part;
  rest: Part;
};

/** A suggestion of the filter bar. */
export type Completion = {
  text: string;
  kind: "field" | "stage field" | "value";
  count: number | null;
  type: string | null;
  usefulness: number | null;
  synonyms: string[];
  value: string | null;
};

/** Suggestions of the filter bar. */
export type Completions = {
  snapshot: number;
  suggestions: Completion[];
};

/** A reader of the journal. */
export type CursorStatus = {
  name: string;
  lag_bytes: number;
  error: string | null;
};

/** A condition that the selection meets more often than the rest. */
export type Difference = {
  fields: string[];
  shape: "absence" | "combination" | "date" | "element" | "hour" | "interval" | "prefix" | "threshold" | "value" | "values" | "weekday";
  description: string;
  value: unknown;
  condition: string;
  selection: Part;
  rest: Part;
  rate: number;
  other_rate: number;
  excess: number;
  excess_low: number;
  excess_high: number;
  p50_ms: number | null;
  other_p50_ms: number | null;
  lift: number | null;
  deviance: number;
  q_value: number;
  clusters: number;
  users: number | null;
  run_ids: string[];
  sql: string;
  synonyms: string[];
  verdict: "explained" | "independent" | "inseparable" | "remains";
  relates_to: string | null;
  varies: string | null;
  parts: string[];
  same_time_share: number | null;
};

/** How a selection differs from the rest: `GET /api/differences?select=PREDICATE`. */
export type Differences = {
  snapshot: number;
  explanation: Explanation;
  command: string;
  markdown: string;
};

/** Failures with the same error: of one stage, or of runs that failed as a whole. */
export type ErrorGroup = {
  pipeline: string;
  stage: string | null;
  kind: string;
  message: string;
  rows: number;
  count: number;
  runs: number;
  first: string;
  last: string;
  examples: string[];
  fingerprint: string | null;
  users: number;
  trend: number[];
  is_new: boolean;
  messages: number;
};

/** A group of failures with the same error. */
export type ErrorRow = {
  group: ErrorGroup;
  where: string;
};

/** The errors by fingerprint: `GET /api/errors`. */
export type Errors = {
  snapshot: number;
  rows: ErrorRow[];
  trend_since: string | null;
  trend_until: string | null;
};

/** The differences between a selection of runs or stages and the rest. */
export type Explanation = {
  summary: string;
  where: string;
  against: string | null;
  within: string | null;
  over: "runs" | "stages";
  pipeline: string | null;
  selected_are: string;
  described: string | null;
  selection: Part;
  rest: Part;
  selection_compared: number;
  rest_compared: number;
  cluster: string | null;
  clusters: number;
  users: number | null;
  design_effect: number;
  fields: number;
  comparisons: number;
  alpha: number;
  onset: string | null;
  onset_range: [string, string] | null;
  same_time: SameTime | null;
  locations: Location[];
  differences: Difference[];
  effects: Difference[];
  changes: Change[];
  changes_before: string | null;
  changes_by: "first row" | "onset" | "rate" | null;
  left_out: LeftOut[];
  limitations: string[];
  sql: string | null;
};

/** The distribution of one field. */
export type Facet = {
  field: string;
  kind: "numbers" | "values";
  values: FacetValue[];
  bins: Bin[];
  other: [number, number];
  missing: [number, number];
  distinct: number;
  difference: number;
};

/** A value of a field, and how often it occurs. */
export type FacetValue = {
  value: string | null;
  where: string;
  selection: number;
  rest: number;
};

/** The distributions of the fields: `GET /api/facets?select=PREDICATE`. */
export type Facets = {
  snapshot: number;
  over: "runs" | "stages";
  selection: number;
  rest: number;
  fields: Facet[];
  left_out: string[];
  sampled: number | null;
};

/** A sentence of the overview. */
export type Finding = {
  kind: "alert" | "crashes" | "durations" | "failures" | "none";
  level: "bad" | "info" | "ok" | "warning";
  text: string;
  where: string | null;
  cause: string | null;
  condition: string | null;
  stage: string | null;
  since: string | null;
  since_range: [string, string] | null;
  view: "errors" | "explore" | "runs" | "status";
};

/** The statistics of a group of rows in the whole time range, or in a part of it. */
export type GroupTotal = {
  count: number;
  failed: number;
  failure_rate: number | null;
  p50_ms: number | null;
  p95_ms: number | null;
  p99_ms: number | null;
};

/** A numeric field over time: `GET /api/heatmap?measure=FIELD&columns=200&rows=60&select=PREDICATE`. */
export type Heatmap = {
  snapshot: number;
  over: "runs" | "stages";
  measure: string;
  measure_sql: string;
  since: string;
  step_s: number;
  columns: number;
  log: boolean;
  edges: number[];
  cells: Cell[];
  count: number;
  missing: number;
  estimated: boolean;
  sql: string;
};

/** One incident in the history of alerts: a period in which an alert fired. */
export type IncidentRecord = {
  id: string;
  rule: string;
  kind: string;
  severity: string;
  pipeline: string | null;
  stage: string | null;
  status: "firing" | "removed" | "resolved";
  began: string;
  fired_at: string;
  ended_at: string | null;
  worst: number | null;
  worst_at: string;
  summary: string;
  threshold: string;
  subjects: string[];
  notices: number;
  silences: Silence[];
  receivers: Record<string, ReceiverState>;
};

/** Fields that were not compared, and the reason. */
export type LeftOut = {
  reason: string;
  fields: string[];
};

/** Where the selection differs: a failing stage and its error, or a stage that takes longer. */
export type Location = {
  stage: string | null;
  what: "failed" | "ran" | "retried" | "waited";
  error_type: string | null;
  fingerprint: string | null;
  selection: Part;
  rest: Part;
  ms: number | null;
  other_ms: number | null;
  share: number;
  cause_share: number | null;
};

/** A vertical mark in a chart over time. */
export type Mark = {
  at: string;
  until: string | null;
  kind: "alert" | "error" | "onset" | "version";
  label: string;
  where: string | null;
};

/** A duration or a number of a run, compared with its peers. */
export type Measured = {
  value: number | null;
  p50: number | null;
  p95: number | null;
  percentile: number | null;
};

/** The landing page: `GET /api/overview`. */
export type Overview = {
  snapshot: number;
  findings: Finding[];
  series: Series;
  changes: Mark[];
  slowest: RunSummary[];
  failing: RunSummary[];
};

/** The rows of the selection, or of the rest, that match a condition. */
export type Part = {
  rows: number;
  count: number;
  share: number;
};

/** The body of a response with an error status (RFC 9457: Problem Details). */
export type Problem = {
  title: string;
  status: number;
  hint: string | null;
  reason: "expired" | "internal" | "invalid" | "replaced" | "snapshot" | "store" | "timeout";
};

/** Counters of the deliveries to one receiver. */
export type ReceiverState = {
  sent: number;
  attempts: number;
  failures: number;
  in_doubt: number;
  given_up: number;
  last_error: string | null;
};

/** Everything about one run: `GET /api/run?id=RUN`. */
export type RunDetails = {
  snapshot: number;
  run: Record<string, unknown>;
  stages: (Record<string, unknown>)[];
  events: ([string, Record<string, unknown>])[];
  children: (Record<string, unknown>)[];
  typical: Typical | null;
  typical_stages: Record<string, Typical>;
  explanation: RunExplanation | null;
};

/** One run, compared with its peers: other runs of the same pipeline with the outcome `ok`. */
export type RunExplanation = {
  run_id: string;
  pipeline: string;
  outcome: string;
  started_at: string;
  summary: string;
  error: string | null;
  peers: Part;
  duration_ms: Measured;
  stages: StageMeasured[];
  unusual: UnusualValue[];
  similar_are: string | null;
  same_error: SameError | null;
  limitations: string[];
};

/** A run in a list. */
export type RunSummary = {
  run_id: string;
  pipeline: string;
  status: string;
  outcome: string;
  failed: boolean | null;
  started_at: string;
  duration_ms: number | null;
  error: string | null;
  failed_stage: string | null;
  running: string[];
  user_id: string | null;
  org_id: string | null;
  session_id: string | null;
  request_id: string | null;
  service_version: string | null;
  parent_run_id: string | null;
  weight: number;
};

/** A page of runs: `GET /api/runs?limit=200&before=CURSOR`. */
export type Runs = {
  snapshot: number;
  rows: RunSummary[];
  next: string | null;
  total: number | null;
  sql: string;
};

/** The runs with the error of a run: those of its `ErrorGroup`. */
export type SameError = {
  fingerprint: string;
  stage: string | null;
  where: string;
  failures: Part;
  first_at: string;
  last_at: string;
};

/** The rows of the time range of a selection that are not selected. */
export type SameTime = {
  since: string;
  until: string;
  against: string;
  count: number;
};

/** Counts, failure rates and durations over time: `GET /api/series?by=FIELD`. */
export type Series = {
  snapshot: number;
  since: string;
  step_s: number;
  steps: number;
  by: string | null;
  groups: SeriesGroup[];
  other_groups: number;
  previous: SeriesGroup | null;
  marks: Mark[];
  estimated: boolean;
  sql: string;
  incomplete_first: boolean;
  incomplete_last: boolean;
};

/** One line of each chart. Each list has one element per time step; None is a gap. */
export type SeriesGroup = {
  name: string | null;
  where: string | null;
  rank: number | null;
  total: GroupTotal | null;
  count: number[];
  failed: number[];
  failure_rate: (number | null)[];
  p50_ms: (number | null)[];
  p95_ms: (number | null)[];
  p99_ms: (number | null)[];
};

/** Temporarily suppresses the notifications of an alert; the rule is still evaluated. */
export type Silence = {
  until: string;
  reason: string;
  since: string | null;
  rule: string | null;
  by: string | null;
};

/** The body of `POST /api/silence`, which suppresses the notifications of an alert. */
export type SilenceRequest = {
  rule: string;
  hours: number;
  reason: string;
};

/** The state of the records that a response describes: `GET /api/snapshot` and the event stream. */
export type SnapshotInfo = {
  number: number;
  read_at: string;
  source: string;
  runs: number;
  in_progress: number;
  writing: boolean;
  pipelines: string[];
  first_at: string | null;
  last_at: string | null;
  estimated: boolean;
  archive_error: string | null;
  version: string;
  options: string;
  actions: boolean;
};

/** The rows of a query: `GET /api/sql?query=SELECT`. */
export type SqlResult = {
  snapshot: number;
  columns: string[];
  rows: unknown[][];
  more: boolean;
  ms: number;
};

/** The graph of a pipeline, from its newest run. */
export type StageGraph = {
  pipeline: string;
  stages: string[];
  edges: ([string, string])[];
};

/** A stage of a run, compared with the same stage of the peers. */
export type StageMeasured = {
  stage: string;
  status: string;
  attempts: number | null;
  critical: boolean;
  peers: number;
  ran_ms: Measured;
  waited_ms: Measured;
  retried_ms: Measured;
};

/** A stage of a pipeline, with its statistics over time. */
export type StageRow = {
  stat: Stat;
  where: string;
  runs_where: string;
  earlier: GroupTotal;
  recent: GroupTotal;
  p95_ms: (number | null)[];
  p99_ms: (number | null)[];
  count: number[];
  failed: number[];
};

/** The stages of each pipeline: `GET /api/stages`. */
export type Stages = {
  snapshot: number;
  since: string;
  step_s: number;
  incomplete_last: boolean;
  recent_since: string;
  rows: StageRow[];
  graphs: StageGraph[];
};

/** The statistics of a stage or a pipeline, overall or in one time bucket. */
export type Stat = {
  pipeline: string;
  stage: string | null;
  since: string | null;
  rows: number;
  count: number;
  ok: number;
  failed: number;
  skipped: number;
  cancelled: number;
  retried: number;
  failure_rate: number | null;
  p50_ms: number | null;
  p90_ms: number | null;
  p95_ms: number | null;
  p99_ms: number | null;
  estimated: boolean;
  count_interval: [number, number] | null;
  failure_rate_interval: [number, number] | null;
  p95_interval: [number, number] | null;
  group: string | null;
};

/** The state of the system: `GET /api/status`. */
export type Status = {
  snapshot: number;
  source: string;
  alerts: (Record<string, unknown>)[];
  incidents: IncidentRecord[];
  alerts_error: string | null;
  writers: WriterStatus[];
  cursors: CursorStatus[];
  damage: string[];
  dropped: number;
  archive: ([string, string])[];
  age_s: number;
  viewers: number;
  queries: number;
  cache_bytes: number;
};

/** The typical duration of a stage or a run in its pipeline, from those that succeeded. */
export type Typical = {
  p50_ms: number | null;
  p95_ms: number | null;
  rows: number;
};

/** A value of a run that few of its peers have, or that most runs with the same problem have. */
export type UnusualValue = {
  field: string;
  value: boolean | number | string;
  share: number;
  typical: number | string;
  typical_share: number | null;
  similar_share: number | null;
  same_time_share: number | null;
  low: number | null;
  high: number | null;
};

/** A process that writes or has written to the journal. */
export type WriterStatus = {
  name: string;
  open: boolean;
  segments: number;
  bytes: number;
};
