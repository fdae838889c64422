import type { ComponentType, JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { useSession } from "./hooks";
import { choose, language, languages, t, word } from "./i18n/i18n";
import type { Key } from "./i18n/i18n";
import { setTheme, theme } from "./look";
import { Boundary } from "./parts/boundary";
import { Dialogs, dismiss } from "./parts/dialog";
import { Icon } from "./parts/icons";
import type { IconName } from "./parts/icons";
import { Pill, Said, describe } from "./parts/parts";
import { useRoute } from "./route";
import { remember } from "./storage";
import { Access } from "./views/access";
import { Application } from "./views/application";
import { Applications } from "./views/applications";
import { Change } from "./views/change";
import { Events } from "./views/events";
import { History } from "./views/history";
import { Nodes } from "./views/nodes";
import { Overview } from "./views/overview";
import { Servers } from "./views/servers";
import { SignIn } from "./views/signin";

/** A view is drawn when the first Status document is there. param is the second part of the hash. */
type View = ComponentType<{ param: string }>;

const views: Record<string, View> = {
  "": Overview, apps: Applications, app: Application, servers: Servers, nodes: Nodes, events: Events, history: History, change: Change, access: Access,
};

const sections: { view: string; name: Key; icon: IconName }[] = [
  { view: "", name: "nav.overview", icon: "overview" },
  { view: "apps", name: "nav.apps", icon: "apps" },
  { view: "servers", name: "nav.servers", icon: "servers" },
  { view: "nodes", name: "nav.nodes", icon: "nodes" },
  { view: "events", name: "nav.events", icon: "events" },
  { view: "history", name: "nav.history", icon: "history" },
  { view: "access", name: "nav.access", icon: "access" },
];

/** Views that belong to a section of another name. */
const parents: Record<string, string> = { app: "apps", change: "history" };

export function App(): JSX.Element {
  const session = useSession();
  const route = useRoute();
  const [, draw] = useState(0);
  const main = useRef<HTMLElement>(null);
  const nav = useRef<HTMLElement>(null);
  const view = Object.hasOwn(views, route.view) ? route.view : "";
  const View = views[view] ?? Overview;
  const param = route.params[0] ?? "";
  const here = sections.find((s) => s.view === (parents[view] ?? view));
  const inside = session.api !== null;

  // Whoever follows a link is at the top of what it leads to.
  const arrived = useRef(route.key);
  useEffect(() => {
    dismiss();
    if (arrived.current === route.key) return;
    arrived.current = route.key;
    scrollTo(0, 0);
    main.current?.focus({ preventScroll: true });
  }, [route.key]);
  // Where it is narrow, the sections are a strip to be pushed.
  useEffect(() => nav.current?.querySelector("[aria-current]")?.scrollIntoView({ inline: "center", block: "nearest" }), [here, inside]);
  useEffect(() => {
    if (!inside) dismiss();
  }, [inside]);
  useEffect(() => {
    document.title = inside && here ? `${param || t(here.name)} · difylb` : "difylb";
  });

  return (
    <div class={inside ? "frame" : "frame out"}>
      {inside && <button type="button" class="skip" onClick={() => main.current?.focus()}>{t("nav.skip")}</button>}
      <header>
        <a class="brand" href="#/"><img src="assets/icon.svg" alt="" width="24" height="24" />difylb</a>
        {inside && (
          <nav ref={nav} aria-label={t("nav.label")}>
            {sections.map((s) => <a key={s.view} href={`#/${s.view}`} aria-current={s === here ? "page" : undefined}><Icon name={s.icon} /><span>{t(s.name)}</span></a>)}
          </nav>
        )}
        <Controls redraw={() => draw((n) => n + 1)} />
      </header>
      <div class="page">
        <Banners />
        <main ref={main} id="main" tabIndex={-1} class={inside ? undefined : "signin"}>
          <Boundary key={inside ? route.key : "out"}>
            {!inside ? <SignIn /> : session.status ? <View param={param} /> : <p class="dim" data-key="wait">{t("wait")}</p>}
          </Boundary>
        </main>
      </div>
      <Dialogs />
    </div>
  );
}

/** Controls are who is signed in, and how the page speaks and looks. */
function Controls({ redraw }: { redraw: () => void }): JSX.Element {
  const session = useSession();
  const { me, status, lost, following } = session;
  const speak = (lang: string): void => {
    remember("difylb.language", lang);
    choose(lang);
    redraw();
  };
  const dress = (wish: string): void => {
    setTheme(wish);
    redraw();
  };
  const themes = { auto: t("theme.auto"), light: t("theme.light"), dark: t("theme.dark") };
  return (
    <div class="controls">
      {me && status && <div class="state"><Pill tone={lost ? "bad" : following ? "good" : "warn"}>{t(lost ? "state.lost" : following ? "state.live" : "state.silent")}</Pill><span class="dim small">{t("state.revision", { n: status.revision })}</span></div>}
      {me && <div class="who"><span class="who-name" title={me.name}>{me.name}</span><span class="badge">{word("role", me.role)}</span></div>}
      <div class="pickers">
        <Picker label={t("control.language")} options={languages} value={language()} pick={speak} />
        <Picker label={t("control.theme")} options={themes} value={theme()} pick={dress} />
        {me && <button type="button" class="quiet" onClick={() => session.end("")}>{t("control.signout")}</button>}
      </div>
    </div>
  );
}

function Picker({ label, options, value, pick }: { label: string; options: Record<string, string>; value: string; pick: (value: string) => void }): JSX.Element {
  return (
    <select aria-label={label} title={label} value={value} onChange={(e) => pick(e.currentTarget.value)}>
      {Object.entries(options).map(([v, text]) => <option key={v} value={v}>{text}</option>)}
    </select>
  );
}

/** Banners say what is wrong with the picture as a whole. */
function Banners(): JSX.Element {
  const { api, lost, stale, status } = useSession();
  const [broken, setBroken] = useState<Error | null>(null);
  useEffect(() => {
    // What fails outside of drawing would otherwise only stand in the console.
    const note = (e: ErrorEvent | PromiseRejectionEvent): void => {
      const cause: unknown = "reason" in e ? e.reason : e.error;
      if (cause instanceof Error) setBroken(cause);
    };
    addEventListener("error", note);
    addEventListener("unhandledrejection", note);
    return () => {
      removeEventListener("error", note);
      removeEventListener("unhandledrejection", note);
    };
  }, []);
  return (
    <>
      {broken && <div class="banner bad" role="alert"><span>{describe(broken)}</span><button type="button" onClick={() => setBroken(null)}>{t("dialog.close")}</button></div>}
      {api && lost && <div class="banner bad" role="alert">{t("banner.lost", { error: describe(lost) })}</div>}
      {api && stale && <div class="banner" role="status">{t("banner.stale", { age: stale })}</div>}
      {api && status?.refusing?.map((r) => (
        <div key={r.node} class="banner" role="status"><span><a href="#/nodes">{r.node}</a> {t(r.held_back ? "banner.held" : "banner.refusing", { revision: r.revision, refused: r.refused_revision })} <Said>{r.reason}</Said></span></div>
      ))}
    </>
  );
}
