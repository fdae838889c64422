import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { path } from "../api/client";
import type { Api } from "../api/client";
import type { Application as Declared, ApplicationStatus, Explanation, Instance, InstanceStatus, Plan } from "../api/types";
import * as f from "../format";
import { useLoaded, useSession } from "../hooks";
import { t } from "../i18n/i18n";
import { address, byWeight, takesUsers } from "../model/figures";
import { ask, toast } from "../parts/dialog";
import { Impact } from "../parts/impact";
import { Fault, Reading, Said, Section, Stack, StatusPill, Tile, Why } from "../parts/parts";
import { Bar, Dot, Ring, Shares } from "../parts/share";
import { Table } from "../parts/table";
import type { Column } from "../parts/table";
import { Traffic } from "../parts/traffic";
import type { Session } from "../session";

const sampleUsers = 400;
const atOnce = 4; // browsers open 6 connections to one server; events and status need theirs

/** What is declared, and each instance as it is observed, by name. */
interface Known {
  declared: Declared;
  observed: Map<string, Instance>;
}

interface Row {
  name: string;
  now: InstanceStatus;
  known: Instance | undefined;
  hue: number;
}

export function Application({ param: name }: { param: string }): JSX.Element {
  const { status, samples } = useSession();
  const known = useLoaded<Known>(async (api, signal) => {
    const [declared, observed] = await Promise.all([
      api.get<Declared>(path("apps", name), { signal }),
      api.all<Instance>(`${path("apps", name)}/instances`, { signal })]);
    return { declared, observed: new Map(observed.map((i) => [i.name, i])) };
  });
  const app = status?.applications[name];
  if (!app) return <><div class="head"><h1>{name}</h1></div><p class="dim">{t("app.gone")}</p></>;
  const last = samples.latest(name);
  const labels = Object.entries(app.token_labels ?? {});
  return (
    <>
      <p class="crumb"><a href="#/apps">{t("nav.apps")}</a> /</p>
      <div class="head"><h1>{name}</h1></div>
      <div class="tiles card">
        <Tile label={t("tile.requests")} value={f.rate(last.requests)} note={t("tile.total", { n: f.count(app.total_requests) })} />
        <Tile label={t("tile.errors")} value={f.rate(last.errors)} note={t("tile.total", { n: f.count(app.errors) })} bad={(last.errors ?? 0) > 0} />
        <Tile label={t("tile.streams")} value={f.count(last.streams)} note={t("tile.open", { n: f.count(last.active) })} />
        <Tile label={t("tile.first")} value={f.ms(last.first50)} note={t("tile.p99", { n: f.ms(last.first99) })} />
        <Tile label={t("col.tokens")} value={f.count(app.usage?.total_tokens)} note={app.usage ? t("app.answers", { n: f.count(app.usage.answers) }) : t("app.nousage")} />
        <Tile label={t("col.cost")} value={f.cost(app.usage)} note={app.usage?.unpriced ? t("app.unpriced", { n: f.count(app.usage.unpriced) }) : undefined} />
      </div>
      <Section title={t("app.instances")}>
        {known.fault && <Fault error={known.fault} retry={known.retry} />}
        <Instances app={name} status={app} known={known.data} />
      </Section>
      {known.data && <Placement key={known.data.declared.revision} known={known.data} />}
      {!known.data && !known.fault && <Reading of={known} />}
      <Traffic app={name} />
      {labels.length > 0 && (
        <Section title={t("app.labels")}>
          <Table
            label={t("app.labels")} rows={labels} id={([label]) => `label-${label}`} empty=""
            columns={[
              { name: t("col.label"), cell: ([label]) => label || t("app.nolabel") },
              { name: t("col.requests"), num: true, sort: ([, l]) => l.requests, cell: ([, l]) => f.count(l.requests) },
              { name: t("col.tokens"), num: true, sort: ([, l]) => l.usage?.total_tokens ?? -1, cell: ([, l]) => f.count(l.usage?.total_tokens) },
              { name: t("col.cost"), num: true, cell: ([, l]) => f.cost(l.usage) },
            ]}
          />
        </Section>
      )}
      {known.data && <details class="card"><summary>{t("app.declaration")}</summary><pre tabIndex={0} lang="en">{JSON.stringify(known.data.declared, null, 2)}</pre></details>}
    </>
  );
}

function Instances({ app, status, known }: { app: string; status: ApplicationStatus; known: Known | null }): JSX.Element {
  const session = useSession();
  const order = known?.declared.instances.map((i) => i.name) ?? [];
  const names = [...new Set([...order, ...Object.keys(status.instances)])];
  const rows = names.flatMap((name): Row[] => {
    const now = status.instances[name];
    return now ? [{ name, now, known: known?.observed.get(name), hue: Math.max(0, order.indexOf(name)) }] : [];
  });
  const quantiles = (q: InstanceStatus["latency_recent"]): JSX.Element => <Stack lines={q?.p50 ? [`p50 ${f.ms(q.p50)}`, `p99 ${f.ms(q.p99)}`] : []} />;
  const columns: Column<Row>[] = [
    { name: t("col.instance"), cell: (r) => <div><b>{r.name}</b>{r.known && <div class="dim small address">{address(r.known)}</div>}</div> },
    { name: t("col.status"), cell: (r) => <div><StatusPill group="status" value={r.now.status} /><div class="dim small why"><Why instance={r.now} /></div></div> },
    { name: t("col.share"), num: true, cell: (r) => (r.known?.ring_share === undefined ? f.unknown : <div class="shared"><span>{f.percent(r.known.ring_share)}</span><Bar share={r.known.ring_share} hue={r.hue} /></div>) },
    { name: t("col.active"), num: true, cell: (r) => <Stack lines={[f.count(r.now.active), ...(r.now.streams ? [<span key="streams" class="dim small">{t("app.streams", { n: f.count(r.now.streams) })}</span>] : [])]} /> },
    { name: t("col.requests"), num: true, cell: (r) => <Stack lines={[f.count(r.now.requests), ...(r.now.retries ? [<span key="retries" class="dim small">{t("app.retries", { n: f.count(r.now.retries) })}</span>] : [])]} /> },
    { name: t("col.errors"), num: true, cell: (r) => <span class={r.now.errors ? "hot" : undefined}>{f.count(r.now.errors)}</span> },
    { name: t("col.latency"), num: true, cell: (r) => quantiles(r.now.latency_recent) },
    { name: t("col.first"), num: true, cell: (r) => quantiles(r.now.first_byte_recent) },
    { name: t("col.bytes"), num: true, cell: (r) => <Stack lines={[`↓ ${f.bytes(r.now.bytes_out)}`, `↑ ${f.bytes(r.now.bytes_in)}`]} /> },
    { name: t("col.usage"), num: true, cell: (r) => <Stack lines={r.now.usage ? [t("app.tokens", { n: f.count(r.now.usage.total_tokens) }), f.cost(r.now.usage)] : []} /> },
  ];
  if (session.may("operator")) columns.push({ name: t("col.actions"), cell: (r) => <Actions app={app} row={r} /> });
  return <Table label={t("app.instances")} columns={columns} rows={rows} id={(r) => r.name} empty={t("app.noinstances")} />;
}

type Verb = "drain" | "activate" | "disable";

const possible: Record<string, Verb[]> = { active: ["drain", "disable"], draining: ["activate", "disable"], disabled: ["activate"] };

function Actions({ app, row }: { app: string; row: Row }): JSX.Element {
  const session = useSession();
  const { name, now, known } = row;
  if (!known) return <>{f.unknown}</>; // nobody is to confirm what he was not shown
  return (
    <div class="buttons">
      {(possible[now.state] ?? ["activate"]).map((verb) => <button key={verb} type="button" aria-label={`${t(`do.${verb}`)} ${name}`} onClick={() => void act(session, app, known, verb)}>{t(`do.${verb}`)}</button>)}
    </div>
  );
}

async function act(session: Session, app: string, instance: Instance, verb: Verb): Promise<void> {
  const api = session.api!;
  const { name } = instance;
  const instances = session.status?.applications[app]?.instances ?? {};
  const now = instances[name];
  const others = Object.entries(instances).filter(([n, i]) => n !== name && takesUsers(i.status)).length;
  const call = path("apps", app, "instances", name, verb);
  // What is confirmed is what was seen: a change by somebody else in between is refused.
  const options = { headers: { "If-Match": `"${instance.revision}"` } };
  const done = await ask({
    title: t(`ask.${verb}`, { name: `${app}/${name}` }),
    body: (
      <>
        <p>{t(`ask.${verb}.what`, { name })}</p>
        {verb !== "activate" && others === 0 && <p class="fault"><b>{t("ask.last")}</b></p>}
        <ul>
          <li>{t("move.open", { open: f.count(now?.active), streams: f.count(now?.streams) })}</li>
          <li>{t("move.others", { others })}</li>
        </ul>
        <Preview ask={(signal) => api.call<Plan>("POST", `${call}?dry_run=true`, { ...options, signal })} />
      </>
    ),
    yes: t(`do.${verb}`), danger: verb !== "activate",
    act: () => api.call<{ open?: number }>("POST", call, options),
  });
  session.reload();
  if (done) toast(t(`done.${verb}`, { name: `${app}/${name}`, open: f.count(done.open ?? 0) }));
}

/** Preview shows what a dry run tells. */
function Preview({ ask }: { ask: (signal: AbortSignal) => Promise<Plan> }): JSX.Element {
  const [plan, setPlan] = useState<Plan | null>(null);
  const [fault, setFault] = useState<Error | null>(null);
  useEffect(() => {
    const life = new AbortController();
    ask(life.signal).then(setPlan, (err: Error) => life.signal.aborted || setFault(err));
    return () => life.abort();
  }, []);
  return (
    <div class="preview" role="status" tabIndex={0}>
      {plan ? <Impact plan={plan} /> : fault ? <><h3>{t("impact.moved")}</h3><Fault error={fault} /></> : <p class="dim">{t("move.asking")}</p>}
    </div>
  );
}

interface Sample {
  n: number;
  taken: Map<string, number>;
}

/** Placement shows where users go: what the weights mean, what the ring gives, what a sample of users meets, and one user. */
function Placement({ known: { declared, observed } }: { known: Known }): JSX.Element {
  const session = useSession();
  const [sample, setSample] = useState<Sample | null>(null);
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState<Error | null>(null);
  const life = useRef(new AbortController());
  useEffect(() => () => life.current.abort(), []);

  const measure = async (): Promise<void> => {
    if (!session.api) return;
    setBusy(true);
    setFault(null);
    try {
      await take(session.api, declared.name, life.current.signal, setSample);
    } catch (err) {
      if (!life.current.signal.aborted && !session.refuse(err)) setFault(err as Error);
    }
    setBusy(false);
  };

  const wanted = byWeight(declared.instances);
  const given = declared.instances.map(({ name }) => ({ name, share: observed.get(name)?.ring_share ?? 0 }));
  const sampled = sample && declared.instances.map(({ name }) => ({ name, share: sample.n ? (sample.taken.get(name) ?? 0) / sample.n : 0 }));
  const rows = declared.instances.map((i, n) => ({ ...i, wanted: wanted[n]?.share, given: given[n]?.share, sampled: sampled?.[n]?.share }));
  const columns: Column<(typeof rows)[number]>[] = [
    { name: t("col.instance"), cell: (r, n) => <span><Dot index={n} />{r.name}</span> },
    { name: t("col.weight"), num: true, cell: (r) => f.count(r.weight) },
    { name: t("ring.weights"), num: true, cell: (r) => f.percent(r.wanted) },
    { name: t("ring.given"), num: true, cell: (r) => f.percent(r.given) },
  ];
  if (sampled) columns.push({ name: t("ring.sampled"), num: true, cell: (r) => f.percent(r.sampled) });
  const { hash_algorithm: algorithm, virtual_nodes: n } = declared.consistent_hash;
  return (
    <Section title={t("ring.title")}>
      <p class="dim">{t("ring.about", { algorithm, n })}</p>
      {rows.length > 0 && (
        <div class="placement">
          <Ring parts={given} label={t("ring.given")} middle={f.count(rows.length)} unit={t("app.instances")} />
          <div>
            <div class="bars">
              <span>{t("ring.weights")}</span><Shares parts={wanted} label={t("ring.weights")} />
              <span>{t("ring.given")}</span><Shares parts={given} label={t("ring.given")} />
              {sample && sampled && <><span>{t("ring.sample", { n: sample.n })}</span><Shares parts={sampled} label={t("ring.sampled")} /></>}
            </div>
            <Table label={t("ring.title")} columns={columns} rows={rows} id={(r) => `share-${r.name}`} empty={t("app.noinstances")} />
          </div>
        </div>
      )}
      <p class="dim small">{t("ring.honest")}{sample && ` ${t("ring.margin", { margin: f.percent(1 / Math.sqrt(Math.max(1, sample.n))) })}`}</p>
      <div class="row">
        <button type="button" disabled={busy} onClick={() => void measure()}>{busy ? t("ring.measuring", { n: sample?.n ?? 0, of: sampleUsers }) : t("ring.measure", { n: sampleUsers })}</button>
        <Explain app={declared.name} />
      </div>
      {fault && <Fault error={fault} />}
    </Section>
  );
}

/** Explain says where one user goes, and why. */
function Explain({ app }: { app: string }): JSX.Element {
  const session = useSession();
  const [answer, setAnswer] = useState<{ user: string; e: Explanation } | null>(null);
  const [fault, setFault] = useState<Error | null>(null);
  const submit = async (e: SubmitEvent): Promise<void> => {
    e.preventDefault();
    const user = String(new FormData(e.target as HTMLFormElement).get("user"));
    if (!user || !session.api) return;
    try {
      setAnswer({ user, e: await session.api.get<Explanation>(question(app, user)) });
      setFault(null);
    } catch (err) {
      setAnswer(null);
      if (!session.refuse(err)) setFault(err as Error);
    }
  };
  return (
    <>
      <form class="row" onSubmit={submit}>
        <input name="user" placeholder={t("ring.user")} aria-label={t("ring.user")} autocomplete="off" spellcheck={false} />
        <button type="submit">{t("ring.explain")}</button>
      </form>
      {fault && <Fault error={fault} />}
      {answer && <div class="explained" role="status"><Explained {...answer} /></div>}
    </>
  );
}

function Explained({ user, e }: { user: string; e: Explanation }): JSX.Element {
  return (
    <>
      <p>{e.chosen ? t(e.fail_open ? "ring.failopen" : "ring.goes", { user, owner: e.owner, chosen: e.chosen, hash: e.hash }) : t("ring.nobody", { user })}</p>
      <Table
        label={t("ring.order")} rows={e.order} id={(s) => `order-${s.instance}`} empty={t("app.noinstances")}
        columns={[
          { name: "#", num: true, cell: (_, i) => i + 1 },
          { name: t("col.instance"), cell: (s) => s.instance },
          { name: t("col.status"), cell: (s) => <StatusPill group="status" value={s.status} /> },
          { name: t("col.why"), cell: (s) => <Said>{s.why}</Said> },
        ]}
      />
    </>
  );
}

// The user stands in the query because that is the call; it is no secret of the page.
function question(app: string, user: string): string {
  return `explain?app=${encodeURIComponent(app)}&user=${encodeURIComponent(user)}`;
}

/** take asks the server who takes the requests of made-up users: the proxies' own answer. */
async function take(api: Api, app: string, signal: AbortSignal, show: (sample: Sample) => void): Promise<void> {
  const sample: Sample = { n: 0, taken: new Map() };
  const salt = crypto.getRandomValues(new Uint32Array(1))[0];
  let next = 0;
  const one = async (): Promise<void> => {
    while (next < sampleUsers) {
      const { chosen } = await api.get<Explanation>(question(app, `sample-user-${salt}-${next++}`), { signal });
      sample.taken.set(chosen, (sample.taken.get(chosen) ?? 0) + 1);
      sample.n++;
      show({ ...sample });
    }
  };
  try {
    await Promise.all(Array.from({ length: atOnce }, one));
  } finally {
    next = sampleUsers; // one failed, the others are not to go on
  }
}
