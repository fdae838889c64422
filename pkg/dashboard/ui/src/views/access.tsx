import type { JSX } from "preact";
import { useRef } from "preact/hooks";
import { path } from "../api/client";
import type { AccessToken, Role } from "../api/types";
import * as f from "../format";
import { useLoaded, useSession } from "../hooks";
import { t, word } from "../i18n/i18n";
import { ask, toast } from "../parts/dialog";
import { Reading } from "../parts/parts";
import { Table } from "../parts/table";
import type { Column } from "../parts/table";
import type { Session } from "../session";

const roles: Role[] = ["viewer", "operator", "admin"];

export function Access(): JSX.Element {
  const session = useSession();
  const mayChange = session.may("admin");
  const tokens = useLoaded((api, signal) => api.all<AccessToken>("access", { signal }));
  const columns: Column<AccessToken>[] = [
    { name: t("col.name"), cell: (a) => <div><b>{a.name}</b>{a.id === session.me?.id && <div class="dim small">{t("access.mine")}</div>}</div> },
    { name: t("col.role"), cell: (a) => word("role", a.role) },
    { name: t("col.hint"), cell: (a) => <span class="code">{a.token_hint ? `…${a.token_hint}` : f.unknown}</span> },
    { name: t("col.created"), cell: (a) => (a.created ? f.moment(a.created) : f.unknown) },
    { name: t("col.used"), cell: (a) => (a.last_used ? f.moment(a.last_used) : t("access.unused")) },
  ];
  if (mayChange) {
    columns.push({ name: t("col.actions"), cell: (a) => <div class="buttons"><button type="button" aria-label={`${t("access.revoke")} ${a.name}`} onClick={() => void revoke(session, a)}>{t("access.revoke")}</button></div> });
  }
  return (
    <>
      <div class="head">
        <h1>{t("nav.access")}</h1>
        {mayChange && <button type="button" class="primary" onClick={() => void make(session)}>{t("access.make")}</button>}
      </div>
      <p class="dim">{t("access.about")}</p>
      <section class="card">
        <Reading of={tokens} />
        {tokens.data && <Table label={t("nav.access")} columns={columns} rows={tokens.data} id={(a) => a.id} empty={t("access.none")} />}
      </section>
    </>
  );
}

async function make(session: Session): Promise<void> {
  const made = await ask({
    title: t("access.make"), yes: t("access.do"),
    body: (
      <>
        <label for="access-name">{t("col.name")}</label>
        <input id="access-name" name="name" required autocomplete="off" spellcheck={false} data-first />
        <label for="access-role">{t("col.role")}</label>
        <select id="access-role" name="role">{roles.map((r) => <option key={r} value={r}>{`${word("role", r)}: ${t(`can.${r}`)}`}</option>)}</select>
      </>
    ),
    act: (form) => {
      const fields = new FormData(form);
      return session.api!.call<{ name: string; token: string }>("POST", "access", { body: { name: String(fields.get("name")).trim(), role: fields.get("role") } });
    },
  });
  if (!made) return;
  session.reload();
  await ask({ title: t("access.made", { name: made.name }), body: <Secret token={made.token} /> });
}

function Secret({ token }: { token: string }): JSX.Element {
  const shown = useRef<HTMLInputElement>(null);
  const copy = async (): Promise<void> => {
    shown.current?.select();
    try {
      await navigator.clipboard.writeText(token);
      toast(t("access.copied"));
    } catch { /* without TLS a browser may forbid it; the text is selected */ }
  };
  return (
    <>
      <p>{t("access.once")}</p>
      <div class="row">
        <input ref={shown} class="secret code" readonly value={token} aria-label={t("signin.token")} spellcheck={false} data-first />
        <button type="button" onClick={() => void copy()}>{t("access.copy")}</button>
      </div>
    </>
  );
}

async function revoke(session: Session, token: AccessToken): Promise<void> {
  const done = await ask({
    title: t("access.ask", { name: token.name }), yes: t("access.revoke"), danger: true,
    body: <p>{t(token.id === session.me?.id ? "access.own" : "access.what")}</p>,
    act: async () => {
      await session.api!.call("DELETE", path("access", token.id));
      return true;
    },
  });
  if (!done) return;
  toast(t("access.revoked", { name: token.name }));
  session.reload();
}
