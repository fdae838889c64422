// What the REST API answers, as far as the page reads it. Fields that an older
// server may not know are optional.

export type Role = "viewer" | "operator" | "admin";
export type State = "active" | "draining" | "disabled";

/** Milliseconds; 0 means that there is nothing of which to tell. */
export interface Quantiles {
  p50: number;
  p99: number;
}

export interface Usage {
  total_tokens: number;
  answers: number;
  cost?: Record<string, string>;
  unpriced?: number;
}

export interface Probe {
  time: string;
  duration_ms: number;
  found: string;
  by: string;
}

export interface InstanceStatus {
  requests: number;
  errors: number;
  retries: number;
  active: number;
  streams: number;
  status: string;
  state: State;
  bytes_in: number;
  bytes_out: number;
  latency_recent?: Quantiles;
  first_byte_recent?: Quantiles;
  last_error: { reason: string; time: string } | null;
  since: string;
  ejected_by?: string[];
  last_probe?: Probe;
  usage?: Usage;
}

export interface ApplicationStatus {
  total_requests: number;
  errors: number;
  active: number;
  instances: Record<string, InstanceStatus>;
  latency_recent?: Quantiles;
  first_byte_recent?: Quantiles;
  usage?: Usage;
  token_labels?: Record<string, { requests: number; usage?: Usage }>;
}

export interface Refusing {
  node: string;
  revision: number;
  refused_revision: number;
  reason: string;
  held_back: boolean;
}

export interface Status {
  revision: number;
  complete: boolean;
  nodes: { proxies: number; admins: number; reporting: number };
  refusing?: Refusing[];
  applications: Record<string, ApplicationStatus>;
}

export interface InstanceDeclaration {
  name: string;
  url?: string;
  host?: string;
  port?: number;
  weight: number;
  state: State;
}


/** An instance of GET /apps/{app}/instances: declared, and observed. */
export interface Instance extends InstanceDeclaration {
  revision: number;
  ring_share?: number;
}

export interface Application {
  name: string;
  revision: number;
  consistent_hash: { hash_algorithm: string; virtual_nodes: number };
  instances: InstanceDeclaration[];
}

export interface Node {
  id: string;
  role: "proxy" | "admin";
  state: string;
  address: string;
  version: string;
  uptime_seconds: number;
  config_revision: number;
  ring_checksum?: string;
  lag_seconds: number;
  apply_ms?: number;
  refused?: string;
  refused_revision?: number;
  refused_epoch?: string;
  held_back?: boolean;
}

export interface Change {
  kind: string;
  action: string;
  app?: string;
  name?: string;
  before?: unknown;
  after?: unknown;
}

export interface HistoryEntry {
  revision: number;
  time: string;
  who: string;
  from: string;
  action: string;
  note?: string;
  count: number;
}

export interface HistoryChange extends HistoryEntry {
  changes: Change[];
}

export interface Movement {
  share: number;
  flows: { from: string; to: string; share: number }[];
  recent_users?: { seen: number; moving: number; exact: boolean };
}

/** What a dry run, and the change itself, answer. */
export interface Plan {
  revision: number;
  unchanged: boolean;
  created: string[];
  changed: string[];
  deleted: string[];
  changes: Change[];
  movements: Record<string, Movement>;
  touched: { app: string; instance: string; how: string; open: number; streams: number }[];
}

export interface Explanation {
  hash: string;
  owner: string;
  chosen: string;
  fail_open?: boolean;
  order: { instance: string; status: string; why: string }[];
}

export interface AccessToken {
  id: string;
  name: string;
  role: Role;
  token_hint?: string;
  created?: string;
  last_used?: string;
}

export interface Me {
  id: string;
  name: string;
  role: Role;
}

/** The data of the events, by their type. */
export interface EventData {
  configuration: { time: string; revision: number; changes: Change[] };
  health: { time: string; app: string; instance: string; from: string; to: string; reason?: string };
  node: { time: string; id: string; role: string; action: string; revision?: number; reason?: string };
  "node.accept": Act & { node: string; revision: number };
  "export.secrets": Act;
  reset: { time?: string };
}

/** What an operator did without changing a declaration. */
export interface Act {
  time: string;
  who: string;
  from: string;
  admin: string;
}
